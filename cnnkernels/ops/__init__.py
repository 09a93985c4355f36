"""The ops: importing this package registers every ``torch.ops.cnnkernels.*``.

Each module ``ops/<stem>.py`` registers its ops on import; there is no central list to edit.
"""

from __future__ import annotations

import importlib
import pkgutil

from .. import _lib as _lib  # the leaf ops must be registered before they are looked up
from ._op import OPS, Decision, explain, use

__all__ = ["Decision", "explain", "use"]

for _module in pkgutil.iter_modules(__path__):
    if _module.name.startswith("_"):
        continue
    _names = importlib.import_module(f"{__name__}.{_module.name}")
    # A module's public functions are those named like one of its ops.
    for _name in [n for n in vars(_names) if n in OPS and callable(vars(_names)[n])]:
        globals()[_name] = vars(_names)[_name]
        __all__.append(_name)
