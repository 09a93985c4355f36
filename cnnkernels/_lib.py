"""Loads the compiled libraries and keeps the reason when one is missing.

The CPU library comes first, the CUDA library only under a CUDA build of torch. Loading registers
the private leaf ops ``torch.ops.cnnkernels._*``.
"""

from __future__ import annotations

import functools
import importlib
import os
from pathlib import Path
from types import ModuleType

import torch

PACKAGE = Path(__file__).resolve().parent


def _load(name: str) -> str | None:
    """Load lib<name>.so; None when it worked, otherwise the reason why not."""
    path = PACKAGE / f"lib{name}.so"
    if not path.exists():
        return f"{path.name} was not built (see `cnnkernels doctor`)"
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return f"{path.name} does not load under torch {torch.__version__}: {error}"
    return None


# None: loaded. A string: the reason why not.
cpu_missing: str | None = _load("cnnkernels_cpu")
cuda_missing: str | None
if torch.version.cuda is None:
    cuda_missing = f"torch {torch.__version__} is a build without CUDA"
else:
    cuda_missing = _load("cnnkernels_cuda")

try:
    plan: ModuleType | None = importlib.import_module("cnnkernels._plan")
    plan_missing: str | None = None
except ImportError as error:
    plan = None
    plan_missing = f"cnnkernels._plan does not import: {error}"


@functools.cache
def gpu_missing() -> str | None:
    """Why there is no usable NVIDIA GPU, or None."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    if not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU"
    return None


def has_leaf(name: str) -> bool:
    """Whether a loaded library registered ``cnnkernels::<name>``."""
    return hasattr(torch.ops.cnnkernels, name)


def user_cache() -> Path:
    """The user's cache folder of this package: $CNNKERNELS_CACHE_DIR, or cnnkernels in the XDG one."""
    own = os.environ.get("CNNKERNELS_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(base) / "cnnkernels"
