"""Device time of whole networks under pytest-benchmark, on photographs."""

from __future__ import annotations

import functools

import pytest

from cnnkernels.bench import networks
from cnnkernels.bench.suite import FAMILIES

BATCH = {"cuda": 64, "cpu": 1}
build = functools.cache(lambda name: networks.build(name, photographs=True))


@pytest.mark.parametrize("impl", ["eager", "cnnkernels"])
@pytest.mark.parametrize("name", FAMILIES)
def test_network(measure, device, name, impl):
    dtype = "bf16" if device.type == "cuda" else "fp32"
    measure(networks.make_case(build(name), BATCH[device.type], dtype, "NHWC", device), impl)
