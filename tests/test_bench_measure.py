"""The bench refuses a speed to a kernel that is wrong, skips elements, or returns a cached result."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

import cnnkernels
from cnnkernels.bench import checks, measure, ops, ratios, show
from cnnkernels.bench.case import Candidate, Case, count, random_tensor
from cnnkernels.bench.peaks import Peaks
from cnnkernels.testing import timing

CPU = torch.device("cpu")
SHAPE = (6, 16, 20, 20)
QUICK = measure.Settings.quick(max_seconds=0.05, warm=False, max_noise=math.inf)
MACHINE = {"cpu": "a", "threads": 1}
CONTENT = {"gpu": None, "machine": MACHINE, "peaks": {}, "versions": {"torch": "2"}}


@pytest.fixture(autouse=True)
def _small_cache(monkeypatch):
    """Outputs are what is judged here: flushing a real cache before every run takes a minute."""
    monkeypatch.setattr(timing, "last_level_cache_bytes", lambda device: 1 << 20)
    monkeypatch.setattr(timing, "_flush_buffer", lambda device: torch.empty(1 << 19))


class FixedPeaks(Peaks):
    """Ceilings far above any machine's, so that only outputs decide."""

    def __init__(self, rate=1e15):
        super().__init__(CPU)
        self.copy, self.matmul = rate, {"fp32": rate, "bf16": rate}

    def remeasure(self, case):
        pass


def add_relu_case(candidate, layout="NHWC", dtype="fp32", exact=False, **kwargs):
    def make_inputs(generator):
        return tuple(random_tensor(generator, SHAPE, dtype, layout) for _ in range(2))

    size = count(SHAPE) * 4
    return Case(
        "ops", "planted", "add_relu", dtype, layout, SHAPE, CPU, make_inputs,
        {"eager": Candidate.of(lambda x, r: F.relu(x + r)),
         "planted": Candidate.of(candidate, ours=True)},
        oracle=lambda x, r: F.relu(x + r), per_image=(True, True),
        read_bytes=2 * size, write_bytes=size, exact=exact, **kwargs,
    )  # fmt: skip


def rows_of(case, peaks=None):
    rows = measure.measure(case, QUICK, peaks or FixedPeaks())
    return {row["impl"]: row for row in rows}


def assert_refused(row, status="wrong"):
    assert row["status"] == status and row["reason"]
    for field in ("cold", "warm", "tflops", "gbps", "share", "ratios"):
        assert field not in row, f"a speed was given: {field}"


def correct(x, r):
    return F.relu(x + r)


def slightly_wrong(x, r):
    return F.relu(x + r * 1.01)


def one_element_wrong(x, r):
    out = F.relu(x + r)
    out[0, 0, 0, 0] += 1.0
    return out


def skips_a_channel(x, r):
    out = torch.empty_like(x)
    out[:, :-1] = F.relu(x[:, :-1] + r[:, :-1])
    return out


def skips_the_last_image(x, r):
    out = torch.empty_like(x)
    out[:-1] = F.relu(x[:-1] + r[:-1])
    return out


class Caches:
    """Returns what it computed the first time, found again by ``key``."""

    def __init__(self, key, copy):
        self.key, self.copy, self.results = key, copy, {}

    def __call__(self, x, r):
        key = self.key(x)
        if key not in self.results:
            self.results[key] = F.relu(x + r)
        return self.results[key].clone() if self.copy else self.results[key]


def constant(x):
    return 0


def address(x):
    return x.data_ptr()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_correct_kernel_gets_a_speed(layout):
    row = rows_of(add_relu_case(correct, layout))["planted"]
    assert row["status"] == "ok" and row["check"]["ok"] and row["check"]["images"] == SHAPE[0]
    assert row["cold"]["median_us"] > 0 and row["ratios"]["eager"] > 0
    assert row["cold"]["p5_us"] <= row["cold"]["median_us"] <= row["cold"]["p95_us"]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    "planted", [slightly_wrong, one_element_wrong, skips_a_channel, skips_the_last_image]
)
def test_a_wrong_kernel_gets_none(planted, layout):
    rows = rows_of(add_relu_case(planted, layout))
    assert_refused(rows["planted"])
    assert rows["eager"]["status"] == "ok" and "planted" not in rows["eager"]["ratios"]


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("key", [constant, address])
def test_a_cached_result_gets_none(key, copy):
    assert_refused(rows_of(add_relu_case(Caches(key, copy)))["planted"])


class KeepsItsOutput:
    """Writes all elements into a buffer of its own the first time, and leaves the last image out
    afterwards: only what the bench does to that memory in between tells."""

    def __init__(self):
        self.buffers = {}

    def __call__(self, x, r):
        known = x.data_ptr() in self.buffers
        out = self.buffers.setdefault(x.data_ptr(), torch.empty_like(x))
        images = len(x) - known
        out[:images] = F.relu(x[:images] + r[:images])
        return out


def test_a_kernel_that_skips_what_it_wrote_before_gets_none(monkeypatch):
    # The last image does not change, so that its old values would be right.
    monkeypatch.setattr(measure._Buffers, "next", lambda self: setattr(self, "turn", self.turn + 1))
    rows = rows_of(add_relu_case(KeepsItsOutput()))
    assert rows["eager"]["status"] == "ok"
    assert_refused(rows["planted"])


def test_one_wrong_element_shows_where_the_norm_hides_it():
    row = rows_of(add_relu_case(one_element_wrong, dtype="bf16"))["planted"]
    assert_refused(row)
    assert "an element is off" in row["reason"]


def test_a_backward_that_ignores_the_gradient_gets_none():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, r):
            out = F.relu(x + r)
            ctx.save_for_backward(out)
            return out

        @staticmethod
        def backward(ctx, grad):
            return (grad, grad)  # without the mask

    def oracle(grad, x, r):
        x, r = x.requires_grad_(), r.requires_grad_()
        return torch.autograd.grad(F.relu(x + r), (x, r), grad)

    def backward_of(fn):
        def bind(grad, x, r):
            leaves = [t.detach().requires_grad_() for t in (x, r)]
            out = fn(*leaves)
            return lambda: torch.autograd.grad(out, leaves, grad)

        return Candidate(bind)

    case = add_relu_case(correct)
    inputs = case.make_inputs
    case.make_inputs = lambda g: (*inputs(g), random_tensor(g, SHAPE, "fp32", "NHWC"))
    case.per_image, case.oracle = (True, True, True), oracle
    case.candidates = {
        "eager": backward_of(lambda x, r: F.relu(x + r)),
        "planted": backward_of(Wrong.apply),
    }
    rows = rows_of(case)
    assert rows["eager"]["status"] == "ok"
    assert_refused(rows["planted"])


# --- the fused chain's backward pass: where rounding decides which element is pooled ------------

CHAIN = next(spec for spec in ops.SPECS if spec.op == "relu_lrn_max_pool2d")
CHAIN_SHAPE = (2, 48, 41, 41)  # large enough for some hundred windows with a near tie


def as_eager_rounds(x, size, alpha, beta, k, kernel_size, stride):
    """Eager's chain as on a GPU, where every step rounds to the dtype. (It has no bf16 on a CPU.)"""
    x = F.relu(x)
    padding = (0, 0, 0, 0, size // 2, size // 2)
    squares = F.pad((x * x).float().unsqueeze(1), padding)
    mean = F.avg_pool3d(squares, (size, 1, 1), stride=1).squeeze(1).to(x.dtype)
    return F.max_pool2d(x / (mean * alpha + k).pow(beta), kernel_size, stride)


def backward_of_the_last_maximum(x, size, alpha, beta, k, kernel_size, stride):
    """A wrong op: its values are right, its gradient goes to the last maximum of a window."""
    out = F.local_response_norm(F.relu(x.float()), size, alpha, beta, k).to(x.dtype).float()
    return F.max_pool2d(out.flip(2, 3), kernel_size, stride).flip(2, 3).to(x.dtype)


def chain_rows(spec, **fns):
    case = ops.make_case(spec, "backward", CHAIN_SHAPE, "bf16", "NHWC", CPU)
    case.candidates = {
        name: ops._backward(lambda x, f=fn: f(x, **spec.kwargs)) for name, fn in fns.items()
    }
    case.baseline = next(iter(fns))
    return {name: row["status"] for name, row in rows_of(case).items()}


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("tie_free", [0, 3])
def test_the_chain_is_judged_by_where_it_pools_rounded_values(dtype, tie_free):
    """Our op pools the first maximum of the rounded values: right, ties or not."""
    spec = dataclasses.replace(CHAIN, tie_free=tie_free)
    case = ops.make_case(spec, "backward", CHAIN_SHAPE, dtype, "NHWC", CPU)
    case.candidates = {"cnnkernels": case.candidates["cnnkernels"]}
    peaks = FixedPeaks()
    peaks.matmul["fp16"] = 1e15
    assert rows_of(case, peaks)["cnnkernels"]["status"] == "ok"


def test_ties_are_decided_by_rounded_values():
    """Without that an op that does as documented is refused: the reason that it is so."""
    ours = cnnkernels.relu_lrn_max_pool2d
    unrounded = dataclasses.replace(CHAIN, tie_free=0, oracle=lambda dtype: CHAIN.eager)
    assert chain_rows(unrounded, ours=ours) == {"ours": "wrong"}
    tied = dataclasses.replace(CHAIN, tie_free=0)
    found = chain_rows(tied, ours=ours, last=backward_of_the_last_maximum)
    assert found == {"ours": "ok", "last": "wrong"}


def test_on_the_data_that_is_timed_rounding_after_every_step_is_right_too():
    assert chain_rows(CHAIN, eager=as_eager_rounds) == {"eager": "ok"}
    tied = dataclasses.replace(CHAIN, tie_free=0)
    assert chain_rows(tied, eager=as_eager_rounds) == {"eager": "wrong"}

    def shifted(x, **kwargs):
        return as_eager_rounds(x.roll(1, 3), **kwargs)

    assert chain_rows(CHAIN, shifted=shifted) == {"shifted": "wrong"}


def test_tie_free_windows_stay_so_whatever_the_signs():
    x = ops.tie_free_tensor(torch.Generator().manual_seed(0), CHAIN_SHAPE, "bf16", "NHWC", 3)
    windows = F.unfold(x.abs().float(), 3, stride=2).view(2, CHAIN_SHAPE[1], 9, -1).sort(2).values
    assert float((windows[:, :, 1:] / windows[:, :, :-1]).min()) > 1.02
    assert 0.3 < float((x > 0).float().mean()) < 0.7 and x.abs().unique().numel() > 90


def test_faster_than_the_machine_is_an_error():
    rows = rows_of(add_relu_case(correct), FixedPeaks(rate=1.0))
    assert_refused(rows["planted"], "impossible")


def test_a_candidate_that_raises_says_so():
    def raises(x, r):
        raise RuntimeError("no kernel for this")

    row = rows_of(add_relu_case(raises))["planted"]
    assert_refused(row, "failed")
    assert "no kernel for this" in row["reason"]


def test_exact_means_equal():
    assert rows_of(add_relu_case(correct, exact=True))["planted"]["status"] == "wrong"  # fp64 sum
    case = add_relu_case(lambda x, r: torch.maximum(x, r), exact=True)
    case.oracle = torch.maximum
    assert rows_of(case)["planted"]["status"] == "ok"


def test_images_outside_the_fp64_sample_are_compared_with_a_rival(monkeypatch):
    monkeypatch.setitem(checks.FP64_ELEMENTS, "cpu", 1)  # only the first and the last image

    def skips_a_middle_image(x, r):
        out = F.relu(x + r)
        out[3] = 0.0
        return out

    rows = rows_of(add_relu_case(skips_a_middle_image))
    assert rows["eager"]["check"]["images"] == 2
    assert_refused(rows["planted"])
    assert "differs from eager" in rows["planted"]["reason"]


def test_no_speed_is_printed_for_a_refused_row(capsys):
    rows = list(rows_of(add_relu_case(skips_a_channel)).values())
    with show.console.capture() as capture:
        show.print_content({**CONTENT, "rows": rows})
    text = capture.get()
    assert "WRONG" in text and "1 rows without a speed" in text
    line = next(line for line in text.splitlines() if "WRONG" in line)
    assert "×" not in line and "GB/s" not in line


def test_the_automatic_choice_is_compared_with_the_best_backend():
    def row(case, impl, us, status="ok"):
        return {"suite": "conv", "case": case, "impl": impl, "ours": impl.startswith("cnnkernels"),
                "status": status, "cold": {"median_us": us}}  # fmt: skip

    rows = [
        row("a", "cnnkernels", 10.0), row("a", "cnnkernels triton", 9.0), row("a", "eager", 8.0),
        row("a", "compile default", 1.0), row("a", "cnnkernels cuda", 2.0, status="wrong"),
        row("b", "cnnkernels", 4.0), row("b", "cnnkernels cuda", 5.0), row("b", "cudnn fused", 4.0),
        row("c", "cnnkernels", 4.0), row("c", "eager", 1.0),  # no backend to choose
    ]  # fmt: skip
    (line,) = ratios.automatic_choice(rows)
    assert "geometric mean of 2" in line and "time 1.118×" in line
    assert "worst 1.250× of eager (a); 1 beyond 1.03×" in line
    assert ratios.automatic_choice(rows[-2:]) == []


def test_peaks_of_this_machine_are_sane():
    case = add_relu_case(correct)
    case.flops = 1
    peaks = Peaks(CPU)
    floor = peaks.floor(case)
    assert 1e8 < peaks.copy < 1e13 and 1e8 < peaks.matmul["fp32"] < 1e14
    assert 0 < peaks.impossible(case) < floor * 1.01


def test_geometric_mean():
    assert ratios.geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
    assert ratios.geometric_mean([]) is None


@pytest.mark.parametrize("phase", ops.PHASES)
def test_ops_are_measured_cold_and_warm(phase):
    """A backward pass uses up its graph: every run has one of its own."""
    spec = next(spec for spec in ops.SPECS if spec.label == "add+relu")
    case = ops.make_case(spec, phase, SHAPE, "fp32", "NHWC", CPU)
    settings = measure.Settings.quick(max_seconds=0.05, warm=True, max_noise=math.inf)
    rows = measure.measure(case, settings, FixedPeaks())
    assert {row["impl"] for row in rows} >= {"eager", "cnnkernels"}
    for row in rows:
        assert row["status"] == "ok" and row["cold"] and row["warm"], row
