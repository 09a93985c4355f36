"""The machine's two ceilings, measured: a large copy and a large matrix product."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..testing import timing
from .case import Case, dtype_of, precision
from .layers import ConvLayer

MATMUL_SIZE = {"cuda": 8192, "cpu": 2048}
CPU_CONV = ConvLayer("peak", 256, 28, 28, 256, 3, padding=1)
# A time under this share of what the ceilings allow is an error of the measurement. The ceilings are
# measured, not absolute: reading alone is faster than copying, and a shared CPU is noisy.
MARGIN = {"cuda": 0.85, "cpu": 0.6}
# F(4×4, 3×3), the largest tile that libraries use, multiplies 4 times less (Lavin & Gray, 2015).
WINOGRAD_SAVING = 4.0


class Peaks:
    """Ceilings of one device; each is measured when first asked for."""

    def __init__(self, device: torch.device):
        self.device = device
        self.copy: float = 0.0  # bytes per second, read + written
        self.matmul: dict[str, float] = {}  # dtype label → FLOP/s

    def measure_copy(self) -> None:
        device = self.device
        size = 1 << 30 if device.type == "cuda" else 4 * timing.last_level_cache_bytes(device)
        source = torch.full((size // 4,), 1.5, device=device)
        target = torch.empty_like(source)
        times = timing.interleaved(
            {"copy": lambda: target.copy_(source)}, device, max_rounds=20, max_seconds=1.0
        )
        # The fastest runs: a ceiling is what the machine can do, not what it usually does.
        self.copy = max(self.copy, 2 * source.nbytes / times["copy"].percentile(10))

    def measure_matmul(self, dtype: str) -> None:
        n = MATMUL_SIZE[self.device.type]
        a, b = (torch.randn(n, n, device=self.device).to(dtype_of(dtype)) for _ in range(2))
        fns = {"matmul": (lambda: a @ b, 2 * n**3)}
        if self.device.type == "cpu":
            # oneDNN's convolution can beat the matrix product of the BLAS that torch was built with.
            layer = CPU_CONV
            x = torch.randn(layer.input_shape(4)).to(dtype_of(dtype))
            x = x.contiguous(memory_format=torch.channels_last)
            w = torch.randn(layer.weight_shape).to(dtype_of(dtype))
            fns["conv"] = (lambda: F.conv2d(x, w, padding=layer.padding), layer.flops(4))
        with precision(dtype), torch.no_grad():
            times = timing.interleaved(
                {name: fn for name, (fn, _) in fns.items()},
                self.device,
                max_rounds=20,
                max_seconds=1.0,
            )
        for name, (_, flops) in fns.items():
            rate = flops / times[name].percentile(10)
            self.matmul[dtype] = max(self.matmul.get(dtype, 0.0), rate)

    def _ensure(self, case: Case) -> None:
        if not self.copy:
            self.measure_copy()
        if case.flops and case.dtype not in self.matmul:
            self.measure_matmul(case.dtype)

    def floor(self, case: Case) -> float:
        """Seconds that no implementation can go much below: operations or bytes, whichever is longer."""
        self._ensure(case)
        compute = case.flops / self.matmul[case.dtype] if case.flops else 0.0
        return max(compute, case.bytes / self.copy)

    def impossible(self, case: Case) -> float:
        """Seconds below which a cold run must be an error of the measurement.

        Less strict than :meth:`floor`: what is written may still lie in the last-level cache when the
        run ends, and a Winograd convolution does fewer operations than are counted.
        """
        self._ensure(case)
        cache = timing.last_level_cache_bytes(self.device)
        moved = case.read_bytes + max(0, case.write_bytes - cache)
        saving = WINOGRAD_SAVING if case.fast_algorithms else 1.0
        compute = case.flops / saving / self.matmul[case.dtype] if case.flops else 0.0
        return MARGIN[self.device.type] * max(compute, moved / self.copy)

    def remeasure(self, case: Case) -> None:
        """Measure again before calling a result impossible: the first time may have been disturbed."""
        self.measure_copy()
        if case.flops:
            self.measure_matmul(case.dtype)

    def facts(self) -> dict:
        return {
            "copy_gbps": round(self.copy / 1e9, 1) if self.copy else None,
            "matmul_tflops": {k: round(v / 1e12, 3) for k, v in self.matmul.items()},
        }
