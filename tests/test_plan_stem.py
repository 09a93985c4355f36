"""The stem convolutions' arithmetic against brute force, without a GPU: tiles, windows, operands."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnkernels import _lib

plan = _lib.plan
if plan is None or not hasattr(plan, "stem_plan"):
    pytest.skip("the planner was not built", allow_module_level=True)

TYPES = [("bfloat16", "bfloat16"), ("float16", "float16"), ("float32", "float32"),
         ("float32", "bfloat16"), ("uint8", "float16")]  # fmt: skip
TAPS = {1: 3, 2: 4, 4: 3}


@st.composite
def problems(draw, pooled: bool):
    """Arguments of stem_plan that a kernel takes."""
    stride = draw(st.sampled_from([2, 4] if pooled else [1, 2, 4]))
    r, s = (draw(st.integers(1, TAPS[stride] * stride)) for _ in "hw")
    padding = [draw(st.integers(0, 3)) for _ in "hw"]
    least = 2 * stride + 1  # three rows and columns of output
    h = max(draw(st.integers(1, 90)), r - 2 * padding[0] + least)
    w = max(draw(st.integers(1, 600)), s - 2 * padding[1] + least)
    x, weight = [draw(st.integers(1, 3)), 3, h, w], [8 * draw(st.integers(1, 16)), 3, r, s]
    pool = [draw(st.integers(0, 1)), draw(st.integers(0, 1))] if pooled else []
    return (
        x,
        weight,
        stride,
        padding,
        *draw(st.sampled_from(TYPES)),
        pool,
        draw(st.integers(1, 140)),
    )


def window(index: int, pad: int, size: int) -> list[int]:
    """The rows or columns of pooled row or column ``index``."""
    return [i for i in range(2 * index - pad, 2 * index - pad + 3) if 0 <= i < size]


@settings(max_examples=60, deadline=None)
@given(problems(pooled=False))
def test_tiles_cover_the_output_once(problem):
    p = plan.stem_plan(*problem)
    n, _, height, width = p["output"]
    covered = np.zeros((n, height, width), int)
    for tile in p["tiles"]:
        rows = slice(tile["row0"], tile["row0"] + tile["rows"])
        assert tile["rows"] >= 1 and rows.stop <= height
        covered[tile["n"], rows, tile["q0"] : tile["q0"] + p["pixels"]] += 1
    assert (covered == 1).all()


@settings(max_examples=80, deadline=None)
@given(problems(pooled=True))
def test_pool_tiles_take_every_window_once(problem):
    p = plan.stem_plan(*problem)
    pad = problem[6][0]
    n, _, height, width = p["output"]
    conv_height, conv_width = p["conv_output"]
    covered = np.zeros((n, height, width), int)
    assert p["columns"] <= p["pixels"] // 2 <= p["stage_pixels"]
    for tile in p["tiles"]:
        for i in range(tile["out_rows"]):
            existing = [t - tile["lead"] for t in range(2 * i, 2 * i + 3)]
            rows = [tile["row0"] + t for t in existing if 0 <= t < tile["rows"]]
            assert rows == window(tile["out_row"] + i, pad, conv_height)
        # The first row is computed: its warpgroup is told by its distance from the window's first.
        assert tile["row0"] - tile["lead"] == 2 * tile["out_row"] - pad and tile["rows"] >= 1
        count = min(p["columns"], width - tile["out_col"])
        for c in range(count):
            local = [2 * c + e - tile["left"] for e in range(3)]
            columns = [tile["q0"] + i for i in local if 0 <= i < tile["limit"]]
            assert columns == window(tile["out_col"] + c, pad, conv_width)
        rows = slice(tile["out_row"], tile["out_row"] + tile["out_rows"])
        covered[tile["n"], rows, tile["out_col"] : tile["out_col"] + p["columns"]] += 1
    assert (covered == 1).all()


@settings(max_examples=40, deadline=None)
@given(problems(pooled=False) | problems(pooled=True))
def test_plans_fit_the_machine(problem):
    p = plan.stem_plan(*problem)
    sms = problem[-1]
    assert p["shared_bytes"] <= 227 * 1024 and p["registers"] <= 65536
    assert p["ring"] >= p["taps"] + 2 and p["gatherers"] <= p["ring"]
    assert p["grid"] <= max(sms, p["channel_blocks"]) and p["grid"] % p["channel_blocks"] == 0
    assert p["channel_blocks"] * p["m_tiles"] * 64 >= p["output"][1]
    assert p["bands"] * p["segments"] * p["output"][0] == len(p["tiles"])


@pytest.mark.parametrize("stride", TAPS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_operands_find_their_pixels(stride, dtype):
    """What wgmma reads through its descriptors is what the producers wrote: the swizzle included."""
    p = plan.stem_plan([1, 3, 64, 64], [64, 3, stride, stride], stride, [0, 0], dtype, dtype)
    span, size = p["pixel_bytes"], p["element_bytes"]
    row = {}  # byte → (pixel, depth)
    chunks = np.array(p["chunk_offsets"]).reshape(p["row_pixels"], -1)
    assert len(np.unique(chunks)) == chunks.size and chunks.max() + 16 <= p["row_bytes"]
    for (pixel, chunk), at in np.ndenumerate(chunks):
        for byte in range(0, 16, size):
            row[at + byte] = pixel, (chunk * 16 + byte) // size
    operands = np.array(p["operand_offsets"]).reshape(p["taps"], p["tap_steps"])
    for (tap, step), start in np.ndenumerate(operands):
        for pixel in range(p["pixels"]):
            for byte in range(0, 32, size):
                at = start + pixel // 8 * 8 * span + pixel % 8 * span + byte
                at ^= (at >> 7 & (span // 16 - 1)) << 4
                assert row[at] == (pixel + tap, (step * 32 + byte) // size)
    for order in (p["order_nhwc"], p["order_nchw"]):  # every channel of every pixel once
        assert sorted(order) == list(range(p["depth"]))


def test_depth_order_is_memory_order():
    """Neighbouring depth channels are neighbours in memory, so that whole words are moved."""
    for stride in TAPS:
        p = plan.stem_plan([1, 3, 64, 64], [64, 3, 1, 1], stride, [0, 0], "float16", "float16")
        at = np.arange(3 * stride**2).reshape(3, stride, stride)  # [c, dy, dx]
        assert p["order_nhwc"] == at.transpose(1, 2, 0).ravel().tolist()
        assert p["order_nchw"] == at.transpose(1, 0, 2).ravel().tolist()


def why_not(x=(2, 3, 224, 224), weight=(64, 3, 7, 7), stride=2, padding=(3, 3),
            input_dtype="bfloat16", dtype="bfloat16", pool=()):  # fmt: skip
    return plan.stem_why_not(
        list(x), list(weight), stride, list(padding), input_dtype, dtype, list(pool)
    )


@pytest.mark.parametrize(
    "change, reason",
    [
        ({}, ""),
        ({"pool": (1, 0)}, ""),
        ({"dtype": "float32", "input_dtype": "float32"}, ""),
        ({"input_dtype": "uint8"}, ""),
        ({"x": (2, 4, 224, 224)}, "3 input channels"),
        ({"input_dtype": "float16"}, "convert float32 and uint8"),
        ({"input_dtype": "uint8", "dtype": "float32"}, "uint8 images with fp16 and bf16"),
        ({"dtype": "float64", "input_dtype": "float64"}, "fp16, bf16 and float32"),
        ({"stride": 3}, "stride 1, 2, 4"),
        ({"weight": (64, 3, 9, 7)}, "8x8/2"),
        ({"weight": (60, 3, 7, 7)}, "in 8s"),
        ({"weight": (136, 3, 7, 7)}, "at most 128"),
        ({"x": (2, 3, 0, 224), "padding": (0, 3)}, "exceeds the padded input"),
        ({"pool": (2, 0)}, "padding 0 or 1"),
        ({"pool": (0, 0), "stride": 1, "weight": (64, 3, 3, 3)}, "strides 2 and 4"),
        ({"pool": (0, 0), "x": (2, 3, 3, 224)}, "window exceeds"),
    ],
)
def test_why_not(change, reason):
    got = why_not(**change)
    assert (got == "") if not reason else (reason in got), got


def test_only_kernels_a_gpu_has_run_are_defaults():
    for input_dtype, dtype in TYPES:
        for pool in (False, True):
            expected = not pool and input_dtype == dtype != "float32"
            assert plan.stem_verified(input_dtype, dtype, pool) == expected
