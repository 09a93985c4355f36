"""Device time of the memory-bound ops under pytest-benchmark: ours and eager PyTorch."""

from __future__ import annotations

import pytest

from cnnkernels.bench import ops

BATCH = {"cuda": 256, "cpu": 2}


@pytest.mark.parametrize("impl", ["eager", "cnnkernels"])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("phase", ops.PHASES)
@pytest.mark.parametrize("spec", ops.SPECS, ids=lambda spec: spec.label)
def test_op(measure, device, spec, phase, layout, impl):
    if spec.operands == "xb" and phase == "backward":
        pytest.skip("its bias gradient is no per-image result")
    dtype = "bf16" if device.type == "cuda" else "fp32"
    shape = (BATCH[device.type], *ops.MAPS["alex_c1"])
    measure(ops.make_case(spec, phase, shape, dtype, layout, device), impl)
