"""Training on real images: recipes, exact resume, several processes, and the classic experiments.

``cnnkernels train MODEL --data …`` is the command; :class:`Run` is the same from Python.
"""

from .distributed import Place, place
from .engine import Result, Run, Stopped
from .recipe import Recipe, default_recipe

__all__ = ["Place", "Recipe", "Result", "Run", "Stopped", "default_recipe", "place"]
