"""Is a timed result right? Compares outputs with fp64, on the buffers that were timed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .case import Case

# Per dtype: largest relative Frobenius error, and largest error of one element relative to its size
# plus the result's root mean square. The second finds single wrong elements that the first hides.
LIMITS = {
    "fp32": (2e-5, 2e-4),
    "tf32": (1e-3, 1e-2),
    "fp16": (1e-3, 1e-2),
    "bf16": (8e-3, 6e-2),
}
# fp64 work of one check; beyond it a sample of the images is checked and the rest compared with rivals.
# Where errors of many layers add up, the baseline's own may be this large (relative Frobenius).
MAX_BASELINE_ERROR = {"fp32": 1e-3, "tf32": 0.05, "fp16": 0.1, "bf16": 0.2}
# Of a training step's gradients: where an activation is within rounding of 0, ReLU's gradient flips,
# and with 20 layers that alone gave eager's fp32 step of a ResNet-18 an error of 5e-3.
MAX_FLIPPED_ERROR = 0.02
FP64_FLOPS = {"cpu": 6e9, "cuda": 4e11}
FP64_ELEMENTS = {"cpu": 6e7, "cuda": 1e9}
CHUNK_BYTES = 1 << 30


@dataclass(frozen=True)
class Check:
    """The verdict on one output."""

    ok: bool
    error: float | None = None  # relative Frobenius error
    worst: float | None = None  # largest error of one element, see LIMITS
    limit: float | None = None
    images: int = 0  # how many were compared with fp64
    reason: str = ""


def as_tuple(value) -> tuple[torch.Tensor, ...]:
    return (value,) if isinstance(value, torch.Tensor) else tuple(value)


def poison(outputs: tuple[torch.Tensor, ...], inputs: tuple[torch.Tensor, ...]) -> None:
    """Overwrite outputs that are no longer needed, so that memory a kernel fails to write shows."""
    own = {x.untyped_storage().data_ptr() for x in inputs}
    for out in outputs:
        if out.untyped_storage().data_ptr() in own:
            continue  # the input itself came back; the comparison judges it
        out.detach().fill_(float("nan") if out.is_floating_point() else torch.iinfo(out.dtype).max)


def sample_images(case: Case, generator: torch.Generator) -> torch.Tensor:
    """Which images are compared with fp64: all that the budget allows, always first and last."""
    total = case.images
    if case.whole:
        return torch.arange(total, device=case.device)
    device = case.device.type
    per_image_flops = max(case.flops / max(total, 1), 1)
    per_image_elements = max(case.bytes / max(total, 1) / 2, 1)
    budget = min(FP64_FLOPS[device] / per_image_flops, FP64_ELEMENTS[device] / per_image_elements)
    wanted = min(total, max(2, int(budget)))
    if wanted >= total:
        return torch.arange(total, device=case.device)
    order = torch.randperm(total - 2, generator=generator, device=generator.device)[: wanted - 2]
    ends = torch.tensor([0, total - 1], device=order.device)
    return torch.cat([ends, order + 1]).sort().values.to(case.device)


class _Errors:
    """Errors of one output, gathered over chunks of images."""

    def __init__(self, dtype: str, exact: bool):
        self.frobenius, self.element = (0.0, 0.0) if exact else LIMITS[dtype]
        self.square = self.reference_square = self.worst = 0.0
        self.reason = ""

    def add(self, out: torch.Tensor, reference: torch.Tensor) -> None:
        if out.shape != reference.shape:
            self.reason = f"shape {list(out.shape)}, expected {list(reference.shape)}"
            return
        out, reference = out.double(), reference.double()
        missing = out.isnan() & ~reference.isnan()
        if bool(missing.any()):
            count = int(missing.sum())
            self.reason = f"{count} elements are NaN and should not be (never written?)"
            return
        difference = (out - reference).abs()
        difference = torch.where(out == reference, 0.0, difference).nan_to_num(nan=0.0)
        finite = reference.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        rms = finite.square().mean().sqrt() if finite.numel() else finite.new_zeros(())
        self.square += float(difference.square().sum())
        self.reference_square += float(finite.square().sum())
        if difference.numel():
            scale = (finite.abs() + rms).clamp_min(1e-30)
            self.worst = max(self.worst, float((difference / scale).max()))

    @property
    def relative(self) -> float:
        return (self.square / max(self.reference_square, 1e-300)) ** 0.5 if self.square else 0.0

    def verdict(self, images: int) -> Check:
        reason = self.reason
        if not reason and not self.relative <= self.frobenius:
            reason = f"relative error {self.relative:.2g}, allowed {self.frobenius:.2g}"
        if not reason and not self.worst <= self.element:
            reason = (
                f"an element is off by {self.worst:.2g} of its scale, allowed {self.element:.2g}"
            )
        return Check(not reason, self.relative, self.worst, self.frobenius, images, reason)


def _chunks(images: torch.Tensor, case: Case):
    if case.whole:
        return [images]
    per_image = max(case.bytes / max(case.images, 1), 1) * 4  # as fp64, and a few temporaries
    size = max(1, int(CHUNK_BYTES // per_image))
    return images.split(size) if len(images) else [images]


def verify(
    case: Case,
    inputs: tuple[torch.Tensor, ...],
    outputs: dict[str, object],
    images: torch.Tensor,
) -> dict[str, Check]:
    """Compare every candidate's output with the fp64 reference on ``images``, and, where that is a
    sample, the whole outputs with those of a candidate that passed."""
    found = {name: as_tuple(out) for name, out in outputs.items()}
    errors: dict[str, list[_Errors]] = {}
    everything = len(images) == case.images
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=False):
        for chunk in _chunks(images, case):
            whole = everything and len(chunk) == case.images
            subset = [
                (x if whole or not image else x.index_select(0, chunk)).double()
                for x, image in zip(inputs, case.per_image)
            ]
            with torch.enable_grad():  # a reference may be a gradient
                references = as_tuple(case.oracle(*subset))
            for name, outs in found.items():
                if name not in errors:
                    errors[name] = [_Errors(case.dtype, case.exact) for _ in references]
                for error, out, reference in zip(errors[name], outs, references):
                    if not case.whole and out.dim() and out.shape[0] != case.images:
                        error.reason = f"{out.shape[0]} images, expected {case.images}"
                        continue
                    error.add(out if whole else out.index_select(0, chunk), reference.detach())
                if len(outs) != len(references):
                    errors[name][0].reason = f"{len(outs)} outputs, expected {len(references)}"
        if case.slack:
            _widen(case, errors)
        checks = {}
        for name, parts in errors.items():
            verdicts = [part.verdict(len(images)) for part in parts]
            bad = [v for v in verdicts if not v.ok]
            checks[name] = bad[0] if bad else max(verdicts, key=lambda v: v.error)
        if not everything:
            _compare_rest(case, found, checks)
    return checks


def _widen(case: Case, errors: dict[str, list[_Errors]]) -> None:
    """Let every candidate err as much as ``slack`` times what PyTorch's own ops do at that precision."""
    allowed = MAX_BASELINE_ERROR[case.dtype]
    if case.whole:
        allowed = max(allowed, MAX_FLIPPED_ERROR)
    for index, base in enumerate(errors.get(case.baseline, ())):
        if base.reason or not base.relative <= allowed:
            continue
        base_relative, base_worst = base.relative, base.worst
        for parts in errors.values():
            parts[index].frobenius = max(parts[index].frobenius, case.slack * base_relative)
            parts[index].element = max(parts[index].element, case.slack * base_worst)
            if case.whole:  # where an activation is next to 0, ReLU's gradient may flip
                parts[index].element = float("inf")


def _compare_rest(case: Case, found: dict[str, tuple], checks: dict[str, Check]) -> None:
    """The images outside the sample: outputs that passed must also agree with each other."""
    passing = [name for name, check in checks.items() if check.ok]
    if not passing:
        return
    judge = case.baseline if case.baseline in passing else passing[0]
    for name in passing:
        reason = ""
        for out, other in zip(found[name], found[judge]):
            error = _Errors(case.dtype, case.exact)
            # Both may be off by the limit.
            limit = max(2 * error.frobenius, 2 * (checks[name].limit or 0.0))
            error.element *= max(2.0, limit / max(error.frobenius, 1e-30))
            error.frobenius = limit
            for chunk in _chunks(torch.arange(case.images, device=out.device), case):
                error.add(out[chunk[0] : chunk[-1] + 1], other[chunk[0] : chunk[-1] + 1])
            verdict = error.verdict(case.images)
            reason = reason or verdict.reason
        if reason:
            old = checks[name]
            checks[name] = Check(
                False, old.error, old.worst, old.limit, old.images,
                f"outside the images checked with fp64, differs from {judge}: {reason}",
            )  # fmt: skip
