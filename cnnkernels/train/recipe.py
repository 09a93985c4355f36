"""What a training run is made of: one frozen table of settings, and each family's defaults."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import numpy as np

from .augment import NAMES as AUGMENTATIONS

CHOICES = {
    "optimizer": ("sgd", "adam", "adamw"),
    "schedule": ("cosine", "step", "constant"),
    "loss": ("cross-entropy", "map"),
    "amp": ("none", "bf16", "fp16"),
    "fit": ("pad", "resize"),
}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run's result. Two runs with equal recipes give equal weights."""

    model: str
    data: str
    variant: str | None = None
    model_args: dict = field(default_factory=dict)  # further arguments of the constructor
    epochs: int = 20
    batch: int = 128  # images in a step, all processes together
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)  # of "step", as fractions of the run
    gamma: float = 0.1  # factor at each milestone
    warmup: float = 0.0  # epochs of linear rise from 0
    loss: str = "cross-entropy"
    temperature: float = 1.0  # cross-entropy of outputs / temperature
    label_smoothing: float = 0.0
    augment: tuple[str, ...] = ()
    strength: float = 1.0  # of the augmentation
    dropout: float | None = None  # None: the model's own
    average: float = 0.0  # decay of the exponential average of the weights; 0: no average
    clip: float = 0.0  # largest gradient norm; 0: no limit
    image_size: int | None = None  # None: what the model takes
    fit: str = "pad"  # small images: "pad" with black by up to 4 pixels, or "resize"
    limit: int | None = None  # train on so many of the images, evenly spaced
    validation: float = 0.0  # share of the training images held out and tested on instead
    seed: int = 0
    amp: str = "none"
    channels_last: bool = False
    compile: bool = False
    checkpointing: bool = False
    sync_batch_norm: bool = False
    deterministic: bool = False

    def __post_init__(self):
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; allowed are {', '.join(allowed)}"
                )
        for name in self.augment:
            if name not in AUGMENTATIONS:
                allowed = ", ".join(AUGMENTATIONS)
                raise ValueError(f"augment has {name!r}; allowed are {allowed}, none")
        limits = {  # name: (lowest, highest, is the lowest itself allowed)
            "epochs": (1, math.inf, True), "batch": (1, math.inf, True), "lr": (0, math.inf, False),
            "momentum": (0, 1, True), "weight_decay": (0, math.inf, True),
            "gamma": (0, 1, False), "warmup": (0, math.inf, True), "label_smoothing": (0, 1, True),
            "temperature": (0, math.inf, False), "average": (0, 1, True), "clip": (0, math.inf, True),
            "dropout": (0, 1, True), "image_size": (1, math.inf, True), "limit": (1, math.inf, True),
            "seed": (0, 2**63, True), "strength": (0, 4, False), "validation": (0, 0.9, True),
        }  # fmt: skip
        for name, (low, high, closed) in limits.items():
            value = getattr(self, name)
            if value is None:
                continue
            inside = (low <= value if closed else low < value) and value < math.inf
            if not inside or value > high or (value == high and name == "average"):
                bounds = f"{'at least' if closed else 'more than'} {low}"
                bounds += f" and at most {high}" if high < math.inf else " and finite"
                raise ValueError(f"{name} is {value!r}; it must be {bounds}")
        if any(not 0 < m < 1 for m in self.milestones):
            raise ValueError(f"milestones are {self.milestones!r}; each must lie between 0 and 1")

    @property
    def tested(self) -> str:
        """What the accuracies are of: the "test" images, or the held-out "validation" images."""
        return "validation" if self.validation else "test"

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: dict) -> Recipe:
        """The recipe of a checkpoint or recipe.json; ValueError for settings that are not ours."""
        known = {f.name for f in dataclasses.fields(Recipe)}
        if extra := set(values) - known:
            raise ValueError(f"recipe has settings this version doesn't know: {sorted(extra)}")
        tuples = {k: tuple(v) for k, v in values.items() if k in ("augment", "milestones")}
        return Recipe(**{**values, **tuples})


_ALEXNET = {
    "epochs": 90, "batch": 128, "lr": 0.01, "weight_decay": 5e-4, "schedule": "step",
    "milestones": (0.33, 0.66), "augment": ("crop", "flip", "colour"),
}  # fmt: skip
_RESNET = {
    "epochs": 90, "batch": 256, "lr": 0.1, "weight_decay": 1e-4, "warmup": 1,
    "augment": ("crop", "flip"),
}  # fmt: skip
_LENET = {"optimizer": "adamw", "batch": 64, "epochs": 50, "warmup": 1, "average": 0.998}
# By the beginning of the model's name; the longest that fits counts.
FAMILIES = {
    "": {"lr": 0.01, "epochs": 30, "augment": ("crop", "flip")},
    "lenet5_modern": {**_LENET, "lr": 3e-3},
    # Minus the squared distances to the codes reach hundreds: as logits they are far too sure.
    "lenet5": {**_LENET, "lr": 4e-3, "temperature": 10.0},
    "alexnet": _ALEXNET,
    "zfnet": _ALEXNET,
    "vgg": {**_ALEXNET, "epochs": 74, "batch": 256},
    "googlenet": {**_RESNET, "lr": 0.05},
    "resnet": _RESNET,
    "plain": _RESNET,
}  # fmt: skip
# He et al. 2015, section 4.2.
_CIFAR_NETS = {
    "epochs": 164, "batch": 128, "lr": 0.1, "weight_decay": 1e-4, "schedule": "step",
    "milestones": (0.5, 0.75), "augment": ("crop", "flip"), "warmup": 1,
}  # fmt: skip
# What the images allow: a mirrored digit is another sign, a mirrored shoe is a shoe.
DATA = {
    "digits": {"augment": ("affine",)},
    "fashion-mnist": {"augment": ("flip",), "epochs": 20},
}
# What a network needs of its own on some data; chosen on held-out training images.
BOTH = {
    # Flips alone overfit; smaller temperatures saturate the softmax and learn more slowly.
    ("lenet5", "fashion-mnist"): {
        "temperature": 30.0, "weight_decay": 0.02, "augment": ("crop", "flip"), "strength": 0.3,
        "epochs": 30,
    },
}  # fmt: skip


def default_recipe(model: str, data: str, **settings) -> Recipe:
    """The family's recipe for ``model`` on ``data``, with ``settings`` (None: keep) put over it."""
    family = max((name for name in FAMILIES if model.startswith(name)), key=len)
    values = dict(_CIFAR_NETS if model.endswith("_cifar") else FAMILIES[family])
    values.update(DATA.get(data, {}))
    values.update(BOTH.get((model, data), {}))
    values.update({name: value for name, value in settings.items() if value is not None})
    return Recipe(model, data, **values)


def lr_at(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Learning rate of a step: a function of the step alone, so resuming needs no more than it."""
    total = recipe.epochs * steps_per_epoch
    warmup = recipe.warmup * steps_per_epoch
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    done = step / total
    if recipe.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * done))
    elif recipe.schedule == "step":
        factor = recipe.gamma ** sum(done >= milestone for milestone in recipe.milestones)
    else:
        factor = 1.0
    return recipe.lr * rise * factor


# What a seed is for: the same (seed, epoch, step) must not give one stream to two uses.
INIT, ORDER, AUGMENT, DROPOUT, FILES = range(5)


def derive(seed: int, *parts: int) -> int:
    """A 63-bit seed for one use: hashed, so neighbouring steps get unrelated streams."""
    return int(np.random.SeedSequence([seed, *parts]).generate_state(1, np.uint64)[0] >> 1)
