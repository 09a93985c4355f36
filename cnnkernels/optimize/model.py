"""The module that optimize() returns."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.utils import _pytree as pytree

from .net import Unsupported
from .plan import Plan
from .proof import NotEqual


class OptimizedModel(nn.Module):
    """Calls the optimised plan where it holds, otherwise the original model.

    The original runs where a gradient is needed, where the inputs' shapes (beyond the batch) are
    not the example's, and where it could not be captured: ``report.reason`` and warnings say so.

    original: the user's model. report: see :class:`cnnkernels.optimize.Report`.
    """

    def __init__(self, original: nn.Module, plan: Plan | None, report, build):
        super().__init__()
        # Not registered: this module has no parameters of its own to train, move or save.
        object.__setattr__(self, "original", original)
        self.plan, self.report, self._build = plan, report, build
        self._autocast: dict[torch.dtype, tuple | None] = {}
        self._warned: set[str] = set()
        self.training = False

    def forward(self, *args, **kwargs):
        plan = self.plan
        if plan is None:
            return self.original(*args, **kwargs)
        flat, spec = pytree.tree_flatten((args, kwargs))
        dtypes = None
        device = plan.device.type
        if torch.is_autocast_enabled(device):
            plan, dtypes = self._under_autocast(
                torch.get_autocast_dtype(device), args, kwargs, flat
            )
            if plan is None:
                return self.original(*args, **kwargs)
        if torch.is_grad_enabled() and any(
            isinstance(t, torch.Tensor) and t.requires_grad for t in flat
        ):
            return self._original("an input requires a gradient", args, kwargs)
        if spec != plan.in_spec:
            return self._original(
                "the inputs are nested otherwise than the example's", args, kwargs
            )
        reason = plan.why_not(flat)
        if reason is not None:
            return self._original(reason, args, kwargs)
        with torch.no_grad():
            if dtypes is None:
                out = plan.run_flat(flat)
            else:
                with torch.autocast(device, enabled=False):
                    out = plan.run_flat(flat)
                out = [t.to(d) if d is not None else t for t, d in zip(out, dtypes)]
        return pytree.tree_unflatten(out, plan.out_spec)

    def _original(self, reason: str, args, kwargs):
        if reason not in self._warned and len(self._warned) < 32:
            self._warned.add(reason)
            warnings.warn(f"cnnkernels.optimize: the original model runs: {reason}", stacklevel=3)
        return self.original(*args, **kwargs)

    def _under_autocast(self, dtype: torch.dtype, args, kwargs, flat):
        """(plan, output dtypes) for calls under autocast: a plan in autocast's dtype, made and
        proved on the first such call."""
        if self.plan.dtype != torch.float32:
            return self.plan, None
        if dtype not in self._autocast:
            try:
                plan, errors, own = self._build(args, kwargs, dtype, autocast=dtype)
                self.report.errors += errors
                kinds = [t.dtype if isinstance(t, torch.Tensor) else None for t in own]
                self._autocast[dtype] = plan, kinds
            except (Unsupported, NotEqual) as error:
                note = f"under autocast to {dtype} the original model runs: {error}"
                self.report.notes.append(note)
                warnings.warn(f"cnnkernels.optimize: {note}", stacklevel=4)
                self._autocast[dtype] = None, None
        return self._autocast[dtype]

    def train(self, mode: bool = True):
        if mode:
            raise ValueError(
                "mode is True; an optimised model is for inference: train the original"
            )
        return self

    def _apply(self, fn, recurse: bool = True):
        raise RuntimeError(
            "an optimised model can't be moved or cast: convert the original and call optimize again"
        )

    def extra_repr(self) -> str:
        return str(self.report)
