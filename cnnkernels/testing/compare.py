"""How close is close enough: errors against an fp64 oracle, in units of the dtype."""

from __future__ import annotations

import torch


def ulp(reference: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Spacing of ``dtype``'s numbers at each fp64 value (the subnormal spacing near 0)."""
    info = torch.finfo(dtype)
    magnitude = reference.double().abs().clamp(min=info.tiny)
    return torch.exp2(torch.floor(torch.log2(magnitude))) * info.eps


def max_ulp_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest |out - reference| in ulps of out's dtype; inf when NaN or infinities disagree."""
    out64, reference = out.double(), reference.double()
    if not torch.equal(out64.isnan(), reference.isnan()):
        return float("inf")
    finite = torch.isfinite(reference) & torch.isfinite(out64)
    same = (out64 == reference) | out64.isnan()
    if not bool((finite | same).all()):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    error = (out64 - reference).abs() / ulp(reference, out.dtype)
    return float(error[finite].max())


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """‖out − reference‖ / ‖reference‖ in the Frobenius norm; NaN anywhere gives NaN, which fails
    every comparison."""
    out, reference = out.double(), reference.double()
    norm = reference.norm()
    return float((out - reference).norm() / norm) if norm > 0 else float((out - reference).norm())


def assert_close(out, reference, *, torch_out=None, ulps: float = 2.0, factor: float = 2.0) -> None:
    """Assert out is within ``ulps`` of the fp64 reference everywhere, or, where PyTorch's own result
    at the same dtype is given, within ``factor`` × its relative error plus one ulp."""
    if out.shape != reference.shape:
        raise AssertionError(f"shape {list(out.shape)}, expected {list(reference.shape)}")
    if torch_out is None:
        error = max_ulp_error(out, reference)
        if not error <= ulps:
            raise AssertionError(f"error {error:.3g} ulp of {out.dtype}, allowed {ulps}")
        return
    ours, theirs = relative_error(out, reference), relative_error(torch_out, reference)
    allowed = factor * theirs + torch.finfo(out.dtype).eps
    if not ours <= allowed:
        raise AssertionError(
            f"relative error {ours:.3g}, allowed {allowed:.3g} (torch {theirs:.3g})"
        )
