"""Tiles of the memory-bound NCHW kernels: every element in one tile, and tiles that fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnkernels import _lib

plan = _lib.plan
if plan is None or not hasattr(plan, "lrn_tile"):
    pytest.skip("the planner was not built", allow_module_level=True)

sizes = st.integers(1, 3000)


@given(st.integers(1, 4000), sizes, st.integers(1, 20000), st.sampled_from([(253, 3), (505, 4)]))
def test_lrn_tiles_cover_the_image_once(images, channels, pixels, limits):
    most, resident = limits
    tile, tiles, depth, pieces = plan.lrn_tile(images, channels, pixels, most, 8, 2, resident)
    assert tile <= most and (tiles - 1) * tile < pixels <= tiles * tile
    assert depth % 8 == 0 and depth <= 2048 and (pieces - 1) * depth < channels <= pieces * depth


def test_lrn_channels_are_split_only_where_blocks_are_few():
    assert plan.lrn_tile(256, 96, 3025, 505, 8, 2, 4) == [505, 6, 96, 1]
    assert plan.lrn_tile(1, 96, 3025, 505, 8, 2, 4)[3] > 1


@given(st.integers(1, 300), st.integers(1, 400), st.sampled_from([32, 128]),
       st.sampled_from([(0, 1), (1, 1), (2, 1), (2, 3)]))  # fmt: skip
def test_no_strip_length_keeps_threads_busier(rows, columns, threads, walk):
    lead, step = walk

    def steps(strip):
        items = columns * -(-rows // strip)
        return -(-items // threads) * (strip + lead)

    strip = plan.pool_strip_rows(rows, columns, threads, lead, step)
    assert strip >= 1 and (strip == rows or (strip + lead) % step == 0)
    allowed = [s for s in range(4, rows + 1) if (s + lead) % step == 0]
    assert all(steps(strip) <= steps(s) for s in allowed)


@given(st.integers(1, 60), st.integers(1, 600), st.booleans(), st.integers(0, 1),
       st.sampled_from(["float32", "float16", "bfloat16"]))  # fmt: skip
def test_fused_bands_fit(height, width, ceil_mode, pad, dtype):
    out = plan.pooled_size(height, 3, 2, pad, 1, ceil_mode)
    rows = plan.lrn_pool_rows([1, 1, height, width], [pad, pad], ceil_mode, dtype)
    most = 509 if dtype == "float32" else 1017
    assert rows == 0 or (1 <= rows <= out and min(2 * rows + 1, height) * width <= most)
