"""What is measured: a computation, its inputs, the rivals that do it, and its exact result."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

# Label → storage dtype. TF32 is fp32 storage with the matrix units' 10-bit mantissa.
DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


def dtype_of(label: str) -> torch.dtype:
    """The storage dtype of a label; ValueError naming the allowed ones."""
    if label not in DTYPES:
        raise ValueError(f"dtype is {label!r}; allowed are {', '.join(DTYPES)}")
    return DTYPES[label]


@contextlib.contextmanager
def precision(label: str):
    """fp32 matrix arithmetic as the label says: TF32 on for "tf32", off for every other."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = label == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _call(fn: Callable) -> Callable:
    def bind(*inputs):
        return lambda: fn(*inputs)

    return bind


@dataclass(frozen=True)
class Candidate:
    """One way to compute a case.

    ``bind(*inputs)`` returns the function without arguments that is timed. It is called before every
    run, outside the timed region: the forward pass of a timed backward pass belongs there.
    """

    bind: Callable[..., Callable[[], object]]
    ours: bool = False
    backend: str = ""  # of ours: "auto", or the one that is forced
    explain: Callable[..., str] | None = None  # inputs → the implementation that "auto" chooses
    slow: bool = False  # its first call compiles: left out where the time limit does not allow it

    @classmethod
    def of(cls, fn: Callable, **kwargs) -> Candidate:
        """A candidate that is timed from its inputs on."""
        return cls(_call(fn), **kwargs)


@dataclass
class Case:
    """One row of a benchmark for every candidate.

    Attributes:
        suite, name: together the key by which two results are compared.
        make_inputs: generator → tensors of fresh random data on the device.
        candidates: name → candidate; ``baseline`` names the rival that ratios are against.
        oracle: the inputs as fp64 → the result (a tensor or a tuple) in fp64.
        per_image: per input, whether dimension 0 counts images. Those inputs change between runs;
            the others (weights) stay. The result's dimension 0 counts images too.
        flops: floating-point operations of the direct method, 2 per multiply-accumulate.
        read_bytes, write_bytes: what has to move at least, each input and output once.
        slack: errors of many layers add up: so many times the baseline's error is right too (0: no).
        whole: the result mixes images (a training step): checked at once, by its norm alone.
        absent: rivals that this machine lacks → why.
        exact: the result must equal the reference bit for bit (max-pool).
    """

    suite: str
    name: str
    op: str
    dtype: str
    layout: str
    shape: Sequence[int]
    device: torch.device
    make_inputs: Callable[[torch.Generator], tuple[torch.Tensor, ...]]
    candidates: dict[str, Candidate]
    oracle: Callable[..., object]
    per_image: tuple[bool, ...] = (True,)
    baseline: str = "eager"
    flops: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    exact: bool = False
    slack: float = 0.0
    whole: bool = False
    hide_host: bool = True
    fast_algorithms: bool = False  # Winograd or FFT may do fewer operations than counted
    absent: dict[str, str] = field(default_factory=dict)
    extra: dict = field(default_factory=dict)  # more columns of the row, as they are

    @property
    def images(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def bytes(self) -> int:
        return self.read_bytes + self.write_bytes


def random_tensor(
    generator: torch.Generator, shape: Sequence[int], dtype: str, layout: str = "NCHW"
) -> torch.Tensor:
    """Normal random numbers on the generator's device, 4-d ones in the layout."""
    x = torch.randn(tuple(shape), generator=generator, device=generator.device)
    x = x.to(dtype_of(dtype))
    return x.contiguous(memory_format=LAYOUTS[layout]) if x.dim() == 4 else x


def shape_text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def count(shape: Sequence[int]) -> int:
    return math.prod(shape)
