"""What optimize() did to a model: fused chains, layers left as they were and why, errors measured."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class OutputError:
    """One output on one set of inputs. Errors are max |difference| / max |reference value|, against
    an fp32 run of the original (fp64 for an fp64 model)."""

    output: int
    inputs: str
    error: float
    original: float  # the original model's own error at the same dtype
    limit: float


@dataclass
class Report:
    """Filled in by :func:`cnnkernels.optimize`; ``print(report)`` shows all of it.

    fused: (rewrite, layers) for each rewrite, in graph order.
    left: (layer, reason) for each operation that still is PyTorch's own.
    errors: one :class:`OutputError` per output and set of inputs.
    choices: (layer, implementation) of each of this package's ops, for the shapes last prepared.
    reason: why the whole model was left alone, None where it was optimised.
    """

    fused: list[tuple[str, str]] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    errors: list[OutputError] = field(default_factory=list)
    choices: list[tuple[str, str]] = field(default_factory=list)
    reason: str | None = None
    layout: str = ""
    dtype: str = ""
    dynamic_batch: bool = False
    graph: str = ""
    notes: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """How often each rewrite was made."""
        return dict(Counter(kind for kind, _ in self.fused))

    def __str__(self) -> str:
        if self.reason is not None:
            return f"left alone: {self.reason}"
        batch = "any batch size" if self.dynamic_batch else "the example's batch size only"
        lines = [f"{self.dtype}, {self.layout}, {batch}, CUDA graph: {self.graph}", "fused:"]
        lines += [f"  {kind:28s} {layers}" for kind, layers in self.fused] or ["  nothing"]
        lines.append("left to PyTorch:")
        lines += [f"  {layer:28s} {reason}" for layer, reason in self.left] or ["  nothing"]
        lines.append("error per output, of max |value|, against fp32 (the original's own; limit):")
        for e in self.errors:
            own = f"({e.original:.1e}; {e.limit:.1e})"
            lines.append(f"  output {e.output}, {e.inputs}: {e.error:.1e} {own}")
        lines += self.notes
        return "\n".join(lines)
