"""cnnkernels: fused Triton/CUDA kernels for convolutional networks as torch ops.

The functions at this level take torch.nn.functional's arguments; the same ops are
``torch.ops.cnnkernels.*``. Layers are in :mod:`cnnkernels.nn`, networks in :mod:`cnnkernels.models`.
"""

from __future__ import annotations

from pathlib import Path as _Path

_root = _Path(__file__).resolve().parent.parent
if (_root / "CMakeLists.txt").exists() and (_root / "csrc" / "plan").is_dir():
    # A source tree: models/ and bench/ lie at the top level of the repository, and are imported as
    # cnnkernels.models and cnnkernels.bench, as they are once installed.
    __path__.append(str(_root))

from . import ops as _ops  # noqa: E402
from .ops import *  # noqa: E402, F403

__version__ = "0.1.0"
__all__ = list(_ops.__all__)


_SUBPACKAGES = ("analysis", "bench", "data", "models", "nn", "optimize", "train", "tuning")


def __getattr__(name: str):
    # On demand: torch.export and Dynamo, which optimize needs, take seconds to import.
    import importlib

    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name == "replace_layers":
        return importlib.import_module(f"{__name__}.optimize").replace_layers
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
