"""The convolution planner: tensor maps, halo tiles and plans against brute force, without a GPU."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnkernels import _lib

plan = _lib.plan
if plan is None or not hasattr(plan, "conv_plans"):
    pytest.skip("the planner was not built", allow_module_level=True)

SHARED_LIMIT = 227 * 1024

sizes = st.integers(1, 12)


@st.composite
def problems(draw, stride=None, dilation=None):
    """Arguments of conv_plans for a small problem whose output is not empty."""
    r, s = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    strides = [draw(st.integers(1, 3)) if stride is None else stride for _ in "hw"]
    dilations = [draw(st.integers(1, 2)) if dilation is None else dilation for _ in "hw"]
    padding = [draw(st.integers(0, 3)) for _ in "hw"]
    extent = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilations, (r, s), padding)]
    h, w = (max(draw(st.integers(1, 33)), e) for e in extent)
    c, k = 8 * draw(st.integers(1, 12)), 8 * draw(st.integers(1, 20))
    dtype = draw(st.sampled_from(["bfloat16", "float16", "float32"]))
    return [draw(st.integers(1, 5)), c, h, w], [k, c, r, s], strides, padding, dilations, 1, dtype


def output_size(x, weight, stride, padding, dilation):
    return tuple(
        (x[2 + i] + 2 * padding[i] - dilation[i] * (weight[2 + i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    )


def numbered(x):
    """[N, H, W] of pixel numbers from 1 on; 0 stands for padding."""
    n, _, h, w = x
    return np.arange(1, n * h * w + 1).reshape(n, h, w)


def im2col_pixels(x, weight, stride, padding, dilation):
    """[N * P * Q, R, S] pixel numbers from the definition of the convolution."""
    p, q = output_size(x, weight, stride, padding, dilation)
    image = np.pad(numbered(x), [(0, 0), (padding[0],) * 2, (padding[1],) * 2])
    out = np.zeros((x[0], p, q, *weight[2:]), int)
    for r, s in itertools.product(range(weight[2]), range(weight[3])):
        rows = image[:, r * dilation[0] :: stride[0]][:, :p]
        out[..., r, s] = rows[:, :, s * dilation[1] :: stride[1]][:, :, :q]
    return out.reshape(-1, *weight[2:])


def replay_im2col(tensor_map, x, start, offsets, count):
    """What the copy engine writes: `count` pixels from base pixel `start` = (w, h, n) on."""
    image = numbered(x)
    _, width, height, batch = tensor_map["dims"]
    step_w, step_h = tensor_map["element_strides"][1:3]
    first = tensor_map["lower"]
    last_w = width - 1 + tensor_map["upper"][0]
    last_h = height - 1 + tensor_map["upper"][1]
    w, h, n = start
    pixels = []
    for _ in range(count):
        row, column = h + offsets[1], w + offsets[0]
        inside = 0 <= row < height and 0 <= column < width and n < batch
        pixels.append(image[n, row, column] if inside else 0)
        w += step_w
        if w > last_w:
            w, h = first[0], h + step_h
        if h > last_h:
            h, n = first[1], n + 1
    return pixels


@settings(max_examples=60, deadline=None)
@given(problems(), st.data())
def test_im2col_map_walks_the_convolution(problem, data):
    x, weight, stride, padding, dilation, _, _ = problem
    expected = im2col_pixels(x, weight, stride, padding, dilation)
    usable = [p for p in plan.conv_plans(*problem) if p["instance"].startswith("igemm")]
    chosen = data.draw(st.sampled_from([p for p in usable if p["why_not"] is None]))
    tensor_map = chosen["input"]
    assert tensor_map["error"] is None
    if not tensor_map["im2col"]:  # 1x1: the pixels are the rows of a matrix
        assert tensor_map["dims"] == [x[1], x[0] * x[2] * x[3]]
        assert weight[2:] == [1, 1] and stride == [1, 1] and padding == [0, 0]
        return
    p, q = output_size(x, weight, stride, padding, dilation)
    m = data.draw(st.integers(0, len(expected) - 1))
    r, s = data.draw(st.integers(0, weight[2] - 1)), data.draw(st.integers(0, weight[3] - 1))
    start = (
        m % q * stride[1] - padding[1],
        m // q % p * stride[0] - padding[0],
        m // q // p,
    )
    count = tensor_map["box"][1]
    got = replay_im2col(tensor_map, x, start, (s * dilation[1], r * dilation[0]), count)
    want = list(expected[m : m + count, r, s])
    assert got == want + [0] * (count - len(want))  # past the last image: zeros


@settings(max_examples=80, deadline=None)
@given(problems(stride=1, dilation=1), st.data())
def test_halo_tiles_read_every_tap_of_every_pixel(problem, data):
    x, weight, stride, padding, dilation, _, _ = problem
    halos = [p for p in plan.conv_plans(*problem) if p["why_not"] is None and "halo" in p]
    if not halos:
        return
    chosen = data.draw(st.sampled_from(halos))
    tile, box = chosen["halo"], chosen["input"]["box"]
    assert chosen["input"]["error"] is None and box[1:3] == [tile["pitch"], tile["box_rows"]]
    p, q = output_size(x, weight, stride, padding, dilation)
    expected = im2col_pixels(x, weight, stride, padding, dilation).reshape(x[0], p, q, -1)
    covered = np.zeros((x[0], p, q), int)
    image = numbered(x)
    for n, row, column in itertools.product(
        range(x[0]), range(tile["row_tiles"]), range(tile["column_tiles"])
    ):
        p0, q0 = row * tile["rows"], column * tile["width"]
        slot = np.full(tile["pitch"] * tile["box_rows"] + 4096, -1)  # -1: not loaded
        for i, j in itertools.product(range(tile["box_rows"]), range(tile["pitch"])):
            h, w = p0 - padding[0] + i, q0 - padding[1] + j
            inside = 0 <= h < x[2] and 0 <= w < x[3]
            slot[i * tile["pitch"] + j] = image[n, h, w] if inside else 0
        for i, start in enumerate(tile["starts"]):
            y, xx = divmod(i, tile["stored_width"])
            stored = y < tile["rows"]
            if not stored or p0 + y >= p or q0 + xx >= q:
                continue  # discarded, or clipped by the store
            taps = [slot[start + shift] for shift in tile["shifts"]]
            assert taps == list(expected[n, p0 + y, q0 + xx])
            covered[n, p0 + y, q0 + xx] += 1
    assert (covered == 1).all()


def written(slot, rows, row_bytes):
    """What TMA leaves in shared memory: {address: (row, 16-byte chunk)} of a box of such rows at
    ``slot``. Its swizzle (PTX ISA, "Swizzling modes"): of the 16-byte chunks of a 128-byte line, those
    in the same 32, 64 or 128 bytes change places by an exclusive or with the line's number."""
    chunks = row_bytes // 16
    memory = {}
    for row, chunk in itertools.product(range(rows), range(chunks)):
        line, place = divmod((slot + row * row_bytes) // 16 + chunk, 8)
        memory[16 * (8 * line + (place ^ line % 8 % chunks))] = row, chunk
    return memory


def read(memory, descriptor, rows, row_bytes):
    """The rows of a K step of 32 bytes that wgmma reads, by the descriptor's fields."""
    address = (descriptor & 0x3FFF) << 4
    group = (descriptor >> 32 & 0x3FFF) << 4
    assert descriptor >> 62 == {128: 1, 64: 2, 32: 3}[row_bytes]
    assert descriptor >> 46 & 0xFFFF == 0, "no base offset, nothing in unused bits"
    starts = [address + i // 8 * group + i % 8 * row_bytes for i in range(rows)]
    return [[memory[plan.swizzled(a + half, row_bytes)] for half in (0, 16)] for a in starts]


@settings(max_examples=60, deadline=None)
@given(problems(stride=1, dilation=1), st.integers(0, 100), st.data())
def test_operand_descriptors_read_what_tma_wrote(problem, buffer, data):
    """Dense tiles (igemm) and windows of a halo box at every tap's start address."""
    entry = data.draw(
        st.sampled_from([p for p in plan.conv_plans(*problem) if p["why_not"] is None])
    )
    size = 4 if problem[-1] == "float32" else 2
    box = entry["input"]["box"]
    row_bytes = box[0] * size
    slot = 1024 * (1 + buffer)
    step = data.draw(st.integers(0, row_bytes // 32 - 1))
    chunks = [2 * step, 2 * step + 1]
    if "halo" not in entry:
        rows = box[1]
        descriptor = plan.operand_descriptor(slot + 32 * step, row_bytes, 8 * row_bytes)
        got = read(written(slot, rows, row_bytes), descriptor, rows, row_bytes)
        assert got == [[(row, c) for c in chunks] for row in range(rows)]
        return
    tile = entry["halo"]
    shift = data.draw(st.sampled_from(tile["shifts"]))
    # Whole-row tiles read past the box for pixels that are thrown away.
    memory = written(slot, max(tile["starts"]) + max(tile["shifts"]) + 1, row_bytes)
    descriptor = plan.operand_descriptor(
        slot + shift * row_bytes + 32 * step, row_bytes, tile["group_pixels"] * row_bytes
    )
    got = read(memory, descriptor, tile["pixels"], row_bytes)
    assert got == [[(start + shift, c) for c in chunks] for start in tile["starts"]]


@settings(max_examples=100, deadline=None)
@given(problems(stride=1, dilation=1))
def test_halo_kernels_read_no_further_than_their_weights(problem):
    """For pixels that are thrown away they read behind the box, where the weights lie."""
    instances = {i["name"]: i for i in plan.conv_instances()}
    size = 4 if problem[-1] == "float32" else 2
    for entry in plan.conv_plans(*problem):
        if entry["why_not"] is not None or "halo" not in entry:
            continue
        instance, tile = instances[entry["instance"]], entry["halo"]
        row_bytes = instance["row_bytes"]
        end = (max(tile["starts"]) + max(tile["shifts"]) + 1) * row_bytes
        slot = -(-tile["pitch"] * tile["box_rows"] * row_bytes // 1024) * 1024
        taps = problem[1][2] * problem[1][3]
        if entry["instance"].startswith("halo_res"):
            slot = max(slot, tile["pixels"] * 64 * size)
        else:
            taps = entry["stages"]
        assert end <= slot + taps * instance["channels"] * row_bytes, entry["instance"]


@settings(max_examples=100, deadline=None)
@given(problems())
def test_plans_fit_the_machine(problem):
    x, weight, dtype = problem[0], problem[1], problem[-1]
    instances = {i["name"]: i for i in plan.conv_instances()}
    plans = plan.conv_plans(*problem)
    assert {entry["instance"] for entry in plans} == set(instances)
    assert plans[0]["why_not"] is None, "igemm takes every problem"
    for entry in plans:
        if entry["why_not"] is not None:
            continue
        assert entry["shared_bytes"] <= SHARED_LIMIT
        assert entry["stages"] >= 2
        split = instances[entry["instance"]]["split"]
        assert 1 <= entry["grid"] <= (132 if split == 1 else entry["tiles"] * split)
        weights = entry["weights"]
        assert weights["error"] is None
        assert weights["dims"] == [x[1], weight[2] * weight[3], weight[0]]
        size = 4 if dtype == "float32" else 2
        assert weights["box"][0] * size == instances[entry["instance"]]["row_bytes"]
        assert weights["swizzle"] == instances[entry["instance"]]["row_bytes"]
        channels = instances[entry["instance"]]["channels"]
        assert entry["tiles"] * channels >= weight[0]
    # Instances that no GPU has run come after the measured ones and are not chosen.
    order = [
        (not instances[entry["instance"]]["measured"], entry["est_us"])
        for entry in plans
        if entry["why_not"] is None
    ]
    assert order == sorted(order)
    chosen = plan.conv_choose(*problem)  # kept per thread: twice the same
    assert chosen == plan.conv_choose(*problem) == plans[0]
    assert instances[chosen["instance"]]["measured"]


def test_instances_are_named_once_and_few():
    instances = plan.conv_instances()
    names = [i["name"] for i in instances]
    assert len(names) == len(set(names)) <= 36
    assert sum(i["measured"] for i in instances) <= 20
    assert all(i["why"] for i in instances)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 4), st.integers(1, 4), st.integers(0, 20),
    st.sampled_from([32, 64]), st.sampled_from([1, 2, 4, 8]),
)  # fmt: skip
def test_blocks_share_every_step_once(c8, r, s, shortcut_c8, chunk, split):
    channels, shortcut = 8 * c8, 8 * shortcut_c8
    blocks = plan.conv_steps(channels, [r, s], shortcut, chunk, split)
    expected = [
        (0, c, i * s + j, i, j)
        for i in range(r)
        for j in range(s)
        for c in range(0, channels, chunk)
    ] + [(1, c, 0, 0, 0) for c in range(0, shortcut, chunk)]
    assert [step for block in blocks for step in block] == expected  # each once, in order
    lengths = [len(block) for block in blocks]
    assert len(blocks) == split and max(lengths) - min(lengths) <= 1


def test_shared_sums():
    """Split instances: the partial sums fit where the stages were, a slice is whole groups of 8."""
    split = {i["name"]: i for i in plan.conv_instances() if i["split"] > 1}
    assert split
    for dtype in ("bfloat16", "float32"):
        problem = [4, 512, 7, 7], [512, 512, 3, 3], [1, 1], [1, 1], [1, 1], 1, dtype
        plans = {entry["instance"]: entry for entry in plan.conv_plans(*problem)}
        for name, i in split.items():
            assert i["pixels"] % (8 * i["split"]) == 0, name
            entry = plans[name]
            assert entry["why_not"] is None
            assert entry["grid"] == entry["tiles"] * i["split"]
            stage = (i["channels"] + i["pixels"]) * 128
            assert entry["stages"] * stage >= i["channels"] * i["pixels"] * 4
    few = plan.conv_plans([4, 64, 7, 7], [512, 64, 1, 1], [1, 1], [0, 0], [1, 1], 1, "bfloat16")
    reasons = {entry["instance"]: entry["why_not"] for entry in few}
    assert all("fewer steps" in reasons[name] for name in split)


def test_pingpong_hides_epilogues():
    """Against the same tile without it: one tile per block gains nothing, many short ones do."""

    def estimates(batch, size, channels, filters):
        plans = plan.conv_plans(
            [batch, channels, size, size], [filters, channels, 1, 1], [1, 1], [0, 0], [1, 1], 1,
            "bfloat16",
        )  # fmt: skip
        found = {entry["instance"]: entry for entry in plans}
        assert "epilogues under the next tile's sums" in found["igemm_128x192_pp"]["reason"]
        return found["igemm_128x192_pp"], found["igemm_128x192"]

    single, plain = estimates(1, 14, 1024, 256)
    assert single["tiles"] == plain["tiles"] <= 132 and single["est_us"] >= plain["est_us"]
    many, plain = estimates(256, 14, 256, 1024)
    assert many["tiles"] > 10 * 132 and many["est_us"] < 0.9 * plain["est_us"]


def why_not(x=(2, 64, 14, 14), weight=(64, 64, 3, 3), stride=(1, 1), padding=(1, 1),
            dilation=(1, 1), groups=1, dtype="bfloat16", channels_last=True, residual=False,
            shortcut=()):  # fmt: skip
    lists = (list(value) for value in (x, weight, stride, padding, dilation))
    return plan.conv_why_not(
        *lists, groups, dtype, channels_last, residual, shortcut=list(shortcut)
    )


@pytest.mark.parametrize(
    "change, reason",
    [
        ({}, None),
        ({"residual": True}, None),
        ({"channels_last": False}, "channels_last"),
        ({"dtype": "float64"}, "bf16, fp16 and float32"),
        ({"x": (2, 3, 14, 14), "weight": (64, 3, 3, 3)}, "C=3 and K=64 per group"),
        ({"weight": (10, 64, 3, 3)}, "K=10"),
        ({"groups": 3}, "groups=3 must divide"),
        ({"groups": 16, "x": (2, 256, 14, 14), "weight": (256, 16, 3, 3)}, "up to 8"),
        ({"stride": (9, 9)}, "a stride over 8"),
        ({"padding": (0, 0), "x": (2, 64, 2, 2)}, "exceeds the padded input"),
        ({"padding": (129, 129)}, "a padding or filter extent over 128"),
        ({"shortcut": (32, 27, 28, 2, 2)}, None),
        ({"shortcut": (32, 30, 28, 2, 2)}, "the shortcut's output size differs"),
        ({"shortcut": (20, 27, 28, 2, 2)}, "the shortcut's C=20 must be a multiple of 8"),
        ({"shortcut": (32, 27, 28, 2, 2), "groups": 2, "weight": (64, 32, 3, 3)}, "neither groups"),
        ({"dilation": (200, 1), "padding": (201, 1)}, "a dilated filter over 256 pixels"),
    ],
)
def test_why_not(change, reason):
    got = why_not(**change)
    assert (got is None) if reason is None else (reason in got), got


def test_bad_dtype_is_named():
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        why_not(dtype="int8")


@pytest.mark.parametrize(
    "x, weight, family",
    [
        ([64, 64, 56, 56], [64, 64, 3, 3], "halo_res"),
        ([64, 128, 112, 112], [128, 128, 3, 3], "halo_stream_224"),
        ([64, 96, 28, 28], [128, 96, 3, 3], "halo_stream_224_c64"),
        ([64, 512, 7, 7], [512, 512, 3, 3], "igemm_128x96"),
        ([64, 16, 28, 28], [32, 16, 5, 5], "halo_res"),
    ],
)
def test_choices_measured_best_are_kept(x, weight, family):
    pad = [weight[2] // 2] * 2
    choice = plan.conv_choose(x, weight, [1, 1], pad, [1, 1], 1, "bfloat16")
    assert choice["instance"].startswith(family), choice["reason"]
    assert "waves" in choice["reason"]


@pytest.mark.parametrize(
    "x, weight, dtype, residual, instance",
    [
        ([1, 512, 7, 7], [512, 512, 3, 3], "bfloat16", False, "igemm_128x64_k8"),
        ([8, 512, 7, 7], [512, 512, 3, 3], "bfloat16", False, "igemm_128x64_k4"),
        ([8, 256, 14, 14], [256, 256, 3, 3], "bfloat16", False, "igemm_128x128_k4"),
        ([32, 512, 7, 7], [512, 512, 3, 3], "bfloat16", False, "igemm_128x224_k4"),
        ([64, 512, 7, 7], [512, 512, 3, 3], "bfloat16", False, "igemm_128x208_k2"),
        ([64, 512, 7, 7], [2048, 512, 1, 1], "bfloat16", False, "igemm_128x208"),
        ([64, 512, 7, 7], [2048, 512, 1, 1], "bfloat16", True, "igemm_128x96_pp"),
        ([256, 512, 7, 7], [2048, 512, 1, 1], "bfloat16", False, "igemm_128x192_pp"),
        ([256, 256, 14, 14], [1024, 256, 1, 1], "bfloat16", True, "igemm_128x192_pp"),
        ([64, 96, 28, 28], [128, 96, 3, 3], "bfloat16", False, "halo_stream_208_c64"),
        ([64, 96, 27, 27], [256, 96, 5, 5], "bfloat16", False, "halo_stream_208_c64"),
        ([64, 64, 56, 56], [64, 64, 3, 3], "float32", False, "halo_stream_2x112_c128"),
        # Nothing new for these.
        ([64, 96, 14, 14], [208, 96, 3, 3], "bfloat16", False, "halo_stream_224_c64"),
        ([64, 160, 14, 14], [320, 160, 3, 3], "bfloat16", False, "igemm_64x128"),
    ],
)
def test_instances_not_measured_yet_lead_where_they_were_made_for(
    x, weight, dtype, residual, instance
):
    """What the planner would choose if every instance counted as measured."""
    pad = [weight[2] // 2] * 2
    plans = plan.conv_plans(x, weight, [1, 1], pad, [1, 1], 1, dtype, residual)
    best = min((p for p in plans if p["why_not"] is None), key=lambda p: p["est_us"])
    assert best["instance"] == instance, best["reason"]
    if not {i["name"]: i for i in plan.conv_instances()}[instance]["measured"]:
        assert best["est_us"] < plan.conv_choose(
            x, weight, [1, 1], pad, [1, 1], 1, dtype, residual
        )["est_us"]  # fmt: skip
