"""``cnnkernels tune``: times every implementation of a network's convolutions, verifies the winners
and records them in the user's table, from which later processes choose."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from torch.utils._python_dispatch import TorchDispatchMode

from .. import tuning
from ..ops import _conv2d
from ..ops._op import OPS
from ..testing import compare, oracles, timing

# Relative Frobenius error against fp64 above which a winner is not recorded.
LIMITS = {"float64": 1e-12, "float32": 1e-5, "tf32": 1e-3, "float16": 1e-3, "bfloat16": 5e-3}
FINALISTS = 3
CHECKED_FLOPS = 4e9  # the oracle runs in fp64 on as many images as this pays for, at least one
OP_NAMES = {
    (False, False): "conv2d", (False, True): "conv2d_relu",
    (True, False): "conv2d_add", (True, True): "conv2d_add_relu",
}  # fmt: skip


@dataclass
class Layer:
    """One convolution of a network, and what follows it that a fused op takes along."""

    x_shape: tuple[int, ...]
    w_shape: tuple[int, ...]
    geometry: tuple  # stride, padding, dilation, groups
    residual: bool = False
    relu: bool = False

    @property
    def op(self) -> str:
        return OP_NAMES[self.residual, self.relu]

    def tensors(self, device, dtype, memory_format, seed: int = 0) -> tuple:
        """(x, weight, bias, residual or None) of about unit variance."""
        generator = torch.Generator().manual_seed(seed)
        shapes = [self.x_shape, self.w_shape, self.w_shape[:1]]
        if self.residual:
            x, weight = (torch.empty(shape, device="meta") for shape in shapes[:2])
            shapes.append(tuple(_conv2d.output_shape(x, weight, *self.geometry[:3])))
        made = []
        for shape in shapes:
            t = torch.randn(shape, generator=generator).to(device, dtype)
            made.append(t.contiguous(memory_format=memory_format) if t.dim() == 4 else t)
        made[1] /= (self.w_shape[1] * self.w_shape[2] * self.w_shape[3]) ** 0.5
        return *made, *[None] * (4 - len(made))


class Capture(TorchDispatchMode):
    """Records a network's convolutions while it runs (on the meta device: nothing is computed).

    A batch normalisation, ReLU or addition after a convolution counts as fused with it: that is the
    form in which the optimised network runs it.
    """

    def __init__(self):
        super().__init__()
        self.layers: list[Layer] = []
        self._made: dict[int, tuple[torch.Tensor, Layer]] = {}  # by id of the output

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.name().removesuffix(".default").split(".")[0]
        if name == "aten::convolution" and not args[6] and len(args[1].shape) == 4:
            x, weight, _, stride, padding, dilation, _, _, groups = args
            self._add(x, weight, (stride, padding, dilation, groups), out)
        elif name.startswith("cnnkernels::conv2d"):
            x, weight, *rest = args
            residual = "_add" in name
            geometry = [*rest[1 + residual :][:4]]
            geometry += [[1, 1], [0, 0], [1, 1], 1][len(geometry) :]
            self._add(x, weight, geometry, out, residual, "relu" in name)
        elif name in ("aten::native_batch_norm", "aten::_native_batch_norm_legit_no_training",
                      "aten::cudnn_batch_norm", "aten::batch_norm"):  # fmt: skip
            self._follow(args[:1], out[0] if isinstance(out, tuple) else out)
        elif name in ("aten::relu", "aten::relu_", "cnnkernels::relu_max_pool2d"):
            self._follow(args[:1], out, relu=True)
        elif name in ("cnnkernels::add_relu", "cnnkernels::_add_relu_with_mask"):
            self._follow(args[:2], out[0] if isinstance(out, tuple) else out, True, True)
        return out

    def _add(self, x, weight, geometry, out, residual=False, relu=False):
        geometry = tuple(g if isinstance(g, int) else tuple(g) for g in geometry)
        layer = Layer(tuple(x.shape), tuple(weight.shape), geometry, residual, relu)
        self.layers.append(layer)
        self._made[id(out)] = (out, layer)

    def _follow(self, sources, out, residual=False, relu=False):
        for source in sources:
            _, layer = self._made.pop(id(source), (None, None))
            if layer is not None and not layer.relu:
                layer.residual |= residual
                layer.relu |= relu
                self._made[id(out)] = (out, layer)
                return


def capture(model: torch.nn.Module, x: torch.Tensor) -> list[Layer]:
    """The convolutions of ``model(x)``, in order; both may be on the meta device."""
    with torch.no_grad(), Capture() as captured:
        model(x)
    return captured.layers


def candidates(layer: Layer, args: tuple) -> Iterator[tuple[str, dict | None, Callable]]:
    """(implementation, config, function) of everything that can run this layer here."""
    x, weight, bias, residual = args
    op_args = (x, weight, *([residual] if layer.residual else []), bias, *layer.geometry)
    for impl in OPS[layer.op].impls.values():
        if impl.name == "triton" and x.device.type != "cuda":
            continue  # off the GPU it is an interpreter
        if impl.why_not(*op_args) is not None:
            continue
        configs: list[dict | None] = [None]
        if impl.name == "triton":
            conv = _conv2d.problem(x, weight, *layer.geometry, layer.residual)
            configs = _conv2d.triton_configs(conv, x.device, torch.backends.cudnn.allow_tf32)
        for config in configs:
            options = {} if config is None else {"config": config}
            yield (
                impl.name, config,
                lambda fn=impl.fn, options=options: fn(*op_args, **options),
            )  # fmt: skip


def error_of(layer: Layer, args: tuple, out: torch.Tensor) -> float:
    """Relative error against fp64 on the first and last images; inf for NaN."""
    if not bool(torch.isfinite(out).all()):
        return float("inf")
    x, weight, bias, residual = args
    per_image = 2 * out[0].numel() * weight[0].numel()
    some = max(min(int(CHECKED_FLOPS / per_image) // 2, out.shape[0] // 2), 1)
    worst = 0.0
    for part in (slice(0, some), slice(-some, None)):
        exact = oracles.conv2d(x[part], weight, bias, *layer.geometry)
        if residual is not None:
            exact += residual[part].double()
        worst = max(
            worst, compare.relative_error(out[part], oracles.relu(exact) if layer.relu else exact)
        )
    return worst


def tune_layer(layer: Layer, device, dtype, memory_format, limit: float, seconds: float) -> dict:
    """The table's entry: the fastest implementation whose output is right.

    Raises RuntimeError when none is.
    """
    args = layer.tensors(device, dtype, memory_format)
    runs, broken = {}, []
    for name, config, fn in candidates(layer, args):
        try:
            fn()
            timing.synchronize(device)
            runs[name, len(runs)] = (config, fn)
        except Exception as error:  # a compiler's or driver's: the others still count
            broken.append(f"{name} {config}: {type(error).__name__}: {str(error)[:200]}")
    fns = {key: fn for key, (_, fn) in runs.items()}
    rough = timing.interleaved(
        fns, device, min_rounds=3, max_rounds=5, max_seconds=seconds / 2, warmup_seconds=0.01
    )
    order = sorted(fns, key=lambda key: rough[key].median)
    # The best of every implementation meets in the final, so that the table shows them all.
    best_of_each = {name: next(k for k in order if k[0] == name) for name, _ in order}
    final = list(dict.fromkeys([*order[:FINALISTS], *best_of_each.values()]))
    exact = timing.interleaved(
        {key: fns[key] for key in final}, device, max_seconds=seconds / 2, warmup_seconds=0.01
    )
    us = {key: exact[key].median * 1e6 for key in final}
    for key in sorted(us, key=us.get):
        config, fn = runs[key]
        error = error_of(layer, args, fn())
        if error <= limit:
            entry = {
                "impl": key[0], "us": round(us[key], 2), "error": float(f"{error:.2e}"),
                "rivals": {n: round(us[k], 2) for n, k in best_of_each.items() if n != key[0]},
            }  # fmt: skip
            return entry if config is None else entry | {"config": config}
        broken.append(f"{key[0]} {config}: error {error:.2e}, allowed {limit:.0e}")
    raise RuntimeError("no implementation gave a right result: " + "; ".join(broken))


def _layers_of(names: list[str], batch: int, variant: str | None) -> list[Layer]:
    from .. import models

    layers = []
    for name in names:
        model = models.create(name, variant, device="meta").eval()
        layers += capture(model, torch.empty(batch, *model.input_size, device="meta"))
    return layers


def tune(
    model: Annotated[list[str], typer.Argument(help="Names of networks, as `inspect --list`.")],
    batch: Annotated[int, typer.Option(min=1, help="Images.")] = 64,
    dtype: Annotated[
        str, typer.Option(help="float32, float16 or bfloat16; default bfloat16 on a GPU.")
    ] = "",
    layout: Annotated[str, typer.Option(help="nhwc (channels_last) or nchw.")] = "nhwc",
    device: Annotated[str, typer.Option(help="cuda or cpu; default the GPU if any.")] = "",
    variant: Annotated[str | None, typer.Option(help="paper or torchvision.")] = None,
    minutes: Annotated[float, typer.Option(min=0, help="Stop after so long; go on later.")] = 10.0,
    again: Annotated[bool, typer.Option("--again", help="Measure known layers again.")] = False,
) -> None:
    """Time every implementation of the networks' convolutions here, and remember the fastest.

    Writes the user's table after every layer: stop and start it at will. Layers already in a table
    are skipped. Later processes read the table; nothing is ever tuned in a forward pass.
    """
    from rich.console import Console
    from rich.progress import Progress

    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or ("bfloat16" if where.type == "cuda" else "float32")
    if dtype not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"--dtype is {dtype!r}; allowed are float32, float16, bfloat16")
    if layout not in ("nhwc", "nchw"):
        raise ValueError(f"--layout is {layout!r}; allowed are nhwc, nchw")
    memory_format = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    torch_dtype = getattr(torch, dtype)
    pending: dict[str, Layer] = {}
    known = tuning.entries(where)
    for layer in _layers_of(model, batch, variant):
        key = tuning.conv_key(
            torch_dtype, where.type, layout == "nhwc", layer.x_shape, layer.w_shape,
            *layer.geometry, layer.residual, layer.relu,
        )  # fmt: skip
        if again or key not in known:
            pending[key] = layer
    console = Console()
    console.print(f"{len(pending)} convolutions to time on {tuning.device_name(where)}")
    deadline = time.monotonic() + 60 * minutes
    path, failed, done = tuning.user_table(where), 0, 0
    with Progress(console=console) as progress:
        task = progress.add_task("tuning", total=len(pending))
        for key, layer in pending.items():
            if time.monotonic() > deadline:
                break
            limit = LIMITS[key.split("/")[1]]
            try:
                entry = tune_layer(layer, where, torch_dtype, memory_format, limit, seconds=1.0)
            except RuntimeError as error:
                failed += 1
                progress.console.print(f"{key}: {error}")
            else:
                path = tuning.save({key: entry}, where)
                rivals = ", ".join(f"{name} {us:g}" for name, us in entry["rivals"].items())
                progress.console.print(
                    f"{key}: {entry['impl']} {entry['us']:g} µs" + f" ({rivals})" * bool(rivals)
                )
            done += 1
            progress.advance(task)
    tuning.forget()
    left = len(pending) - done
    console.print(
        f"{done - failed} recorded in {path}" + f"; {left} left: run it again" * bool(left)
    )
    if failed:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    app.command()(tune)
