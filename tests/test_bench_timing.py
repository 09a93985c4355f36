"""The timers: statistics, interleaving, cold caches, and the clock for pytest-benchmark."""

from __future__ import annotations

import time

import pytest
import torch

from cnnkernels.testing import timing

CPU = torch.device("cpu")


def test_statistics():
    t = timing.Timing((5.0, 1.0, 2.0, 4.0, 3.0))
    assert t.median == 3.0
    assert t.percentile(0) == 1.0 and t.percentile(100) == 5.0
    assert t.percentile(95) == pytest.approx(4.8)
    assert timing.Timing((1.0,) * 9).noise == 0.0
    assert timing.Timing((1.0, 1.0)).noise == float("inf")  # two runs prove nothing
    assert timing.Timing((1.0, 2.0) * 10).noise > 0.1


def test_candidates_take_turns_and_inputs_change_every_round():
    calls = []
    result = timing.interleaved(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
        CPU,
        before_round=lambda: calls.append("round"),
        before_run=lambda name: calls.append(f"before {name}"),
        after_run=lambda name, out: calls.append(f"after {name}"),
        min_rounds=2, max_rounds=2, warmup_seconds=0.0,
    )  # fmt: skip
    assert len(result["a"].seconds) == len(result["b"].seconds) == 2

    def run(name):
        return [f"before {name}", name, f"after {name}"]

    timed = calls[-14:]
    assert timed == ["round", *run("a"), *run("b"), "round", *run("b"), *run("a")]


def test_warm_runs_once_untimed_just_before():
    calls = []
    timing.interleaved(
        {"a": lambda: calls.append("run")}, CPU, cold=False,
        before_run=lambda name: calls.append("before"), min_rounds=1, max_rounds=1,
        warmup_seconds=0.0,
    )  # fmt: skip
    assert calls[-4:] == ["before", "run", "before", "run"]


def test_times_are_seconds():
    result = timing.interleaved(
        {"short": lambda: time.sleep(0.002), "long": lambda: time.sleep(0.006)},
        CPU, min_rounds=5, max_rounds=8, warmup_seconds=0.0,
    )  # fmt: skip
    assert 0.002 <= result["short"].median < 0.006 <= result["long"].median < 0.03


def test_stops_once_the_spread_is_under_the_bound_and_at_the_time_limit():
    steady = timing.interleaved(
        {"a": lambda: time.sleep(0.003)}, CPU, min_rounds=5, max_rounds=60, precision=0.5,
        warmup_seconds=0.0, max_seconds=5,
    )  # fmt: skip
    assert len(steady["a"].seconds) < 20
    start = time.perf_counter()
    timing.interleaved(
        {"a": lambda: time.sleep(0.003)}, CPU, min_rounds=2, max_rounds=10_000, precision=0.0,
        warmup_seconds=0.0, max_seconds=0.2,
    )  # fmt: skip
    assert time.perf_counter() - start < 3


def test_flush_is_larger_than_twice_the_cache():
    timing.flush_caches(CPU)
    buffer = timing._flush_buffer(CPU)
    assert buffer.numel() * 4 >= 2 * timing.last_level_cache_bytes(CPU) > 0


def test_device_clock_advances_by_measured_time_only():
    clock = timing.DeviceClock()
    run = clock.timed(lambda seconds: time.sleep(seconds), CPU)
    before = clock()
    time.sleep(0.02)  # not measured
    assert clock() - before < 1e-6
    run(0.005)
    assert 0.005 <= clock() - before < 0.02


@pytest.mark.gpu
def test_gpu_time_is_the_device_time_not_the_enqueue():
    a = torch.randn(8192, 8192, device="cuda")
    clock = timing.DeviceClock()
    run = clock.timed(lambda: a @ a, "cuda")
    run()
    before = clock()
    run()
    seconds = clock() - before
    assert 2 * 8192**3 / seconds < 2e15, "faster than any GPU: the enqueue was timed"
    result = timing.interleaved({"mm": lambda: a @ a}, "cuda", min_rounds=5, max_rounds=10)
    assert 2 * 8192**3 / result["mm"].median < 2e15
