"""Device time of the classic networks' convolutions under pytest-benchmark."""

from __future__ import annotations

import pytest

from cnnkernels.bench import conv
from cnnkernels.bench.layers import LAYERS

BATCH = {"cuda": 64, "cpu": 1}


@pytest.mark.parametrize("impl", ["eager", "cnnkernels"])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.label(64))
def test_layer(measure, device, layer, impl):
    dtype = "bf16" if device.type == "cuda" else "fp32"
    batch = BATCH[device.type]
    measure(conv.make_case(layer, batch, layer.residual, dtype, "NHWC", device), impl)
