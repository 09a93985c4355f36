"""pytest-benchmark on device time: ``pytest bench/suites --benchmark-enable``."""

from __future__ import annotations

import pytest
import torch

from cnnkernels.bench.checks import as_tuple, poison, sample_images, verify
from cnnkernels.testing.timing import DeviceClock

CLOCK = DeviceClock()


def pytest_collection_modifyitems(items):
    for item in items:
        # Its own timer would see only the enqueue on a GPU.
        item.add_marker(pytest.mark.benchmark(timer=CLOCK))


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@pytest.fixture
def measure(benchmark):
    """Times one candidate of a case on fresh inputs and checks what the timed runs wrote."""

    def run(case, name: str, rounds: int = 10):
        generator = torch.Generator(case.device).manual_seed(torch.seed() & 0x7FFFFFFF)
        inputs = case.make_inputs(generator)
        candidate = case.candidates[name]
        held = {}

        def setup():
            if name in held:
                poison(as_tuple(held.pop(name)), inputs)
            inputs[0].neg_()  # a result from before is wrong now
            return (candidate.bind(*inputs),), {}

        def call(fn):
            held[name] = fn()
            return held[name]

        benchmark.group = case.name
        benchmark.extra_info.update(bytes=case.bytes, flops=case.flops)
        benchmark.pedantic(
            CLOCK.timed(call, case.device), setup=setup, rounds=rounds, warmup_rounds=2
        )
        (check,) = verify(case, inputs, held, sample_images(case, generator)).values()
        assert check.ok, f"{case.name}, {name}: {check.reason}"
        benchmark.extra_info["error"] = check.error

    return run
