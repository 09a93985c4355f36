"""The classic experiments on convolutional networks, each a function that measures and draws.

A function takes an :class:`Setting`, writes ``<name>.png`` and ``<name>.json`` into its folder and
returns the JSON's content. The quick forms are for two CPU cores; ``full=True`` is the published size.
"""

from .ablation import ablation
from .common import Setting
from .depth import depth
from .filters import filters
from .gradients import gradients
from .lenet import lenet
from .shift import shift

EXPERIMENTS = {
    "lenet": lenet,
    "depth": depth,
    "gradients": gradients,
    "ablation": ablation,
    "filters": filters,
    "shift": shift,
}
__all__ = ["EXPERIMENTS", "Setting", *EXPERIMENTS]
