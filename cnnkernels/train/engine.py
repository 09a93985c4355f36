"""One training run: the loop, its state, and how the state is saved and taken up again.

What a step does depends on the recipe, the weights and the step's number alone: the order of the
images, their augmentation and dropout's random numbers are seeded per step. A run that was stopped
anywhere and resumed therefore ends with the weights, bit for bit, of one that was not.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .. import models
from ..data import ImageData
from . import checkpoint, log
from .batches import Batches
from .checkpointing import checkpoint_blocks
from .distributed import Place
from .recipe import DROPOUT, INIT, Recipe, derive, lr_at

AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Stopped(Exception):
    """The run was asked to stop; its checkpoint is written."""


@dataclass
class Result:
    """How a finished run ended."""

    accuracy: float  # on the test images, per cent
    loss: float
    probabilities: Tensor  # [N, classes] float32 of this process's test images
    labels: Tensor  # [N]
    history: list[dict]  # one row per epoch: see log.COLUMNS
    model: nn.Module = field(repr=False)


def build(recipe: Recipe, data: ImageData) -> nn.Module:
    """The recipe's network for the data's classes, initialised from the recipe's seed."""
    arguments = dict(recipe.model_args)
    torch.manual_seed(derive(recipe.seed, INIT))
    classes = len(data.classes)
    try:
        if recipe.model != "lenet5":  # whose ten classes are drawn on its output
            arguments.setdefault("num_classes", classes)
        if recipe.model.endswith("_cifar") or recipe.model == "lenet5_modern":
            arguments.setdefault("in_channels", data.channels)
        model = models.create(recipe.model, recipe.variant, **arguments)
    except TypeError as error:
        raise ValueError(
            f"model_args of {recipe.model} are {recipe.model_args}: {error}"
        ) from error
    if recipe.model == "lenet5" and classes != 10:
        raise ValueError(f"lenet5 has 10 classes drawn on its output; {data.name} has {classes}")
    if recipe.loss == "map" and not isinstance(model, models.LeNet5):
        raise ValueError(f"loss is 'map', which only lenet5 has; model is {recipe.model!r}")
    if recipe.dropout is not None:
        layers = [m for m in model.modules() if isinstance(m, nn.Dropout)]
        if not layers and recipe.dropout:
            raise ValueError(
                f"dropout is {recipe.dropout}, but {recipe.model} has no dropout layer"
            )
        for layer in layers:
            layer.p = recipe.dropout
    return model


def optimizer_of(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Weight decay is for weights: biases and batch norm's factors are left alone."""
    weights = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.dim() <= 1]
    groups = [
        {"params": weights, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if recipe.optimizer == "sgd":
        nesterov = recipe.momentum > 0
        return torch.optim.SGD(groups, recipe.lr, momentum=recipe.momentum, nesterov=nesterov)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, recipe.lr)


def loss_of(recipe: Recipe, output: Tensor, labels: Tensor) -> Tensor:
    """Scalar mean loss; ``output`` is [N, classes], or GoogLeNet's with its auxiliary heads."""
    if isinstance(output, tuple):
        main, *auxiliary = output
        # Szegedy et al. 2014, section 5: the auxiliary losses count 0.3.
        extra = sum(loss_of(recipe, o, labels) for o in auxiliary if o is not None)
        return loss_of(recipe, main, labels) + 0.3 * extra
    if recipe.loss == "map":
        return models.lenet5_loss(output.float(), labels)
    output = output.float() / recipe.temperature
    return F.cross_entropy(output, labels, label_smoothing=recipe.label_smoothing)


class Run:
    """A run in progress.

    Args:
        recipe, data: what to train on what.
        place: process and device.
        folder: where checkpoint, log and curves go; None writes nothing.
        workers: processes that decode image files.
        save_steps, save_seconds: write a checkpoint after so many steps, and after so many seconds
            (at the latest at an epoch's end). When it is written does not change the result.
        report: called after every step with (epoch, step, loss); for a progress bar.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: ImageData,
        place: Place,
        folder: Path | None = None,
        *,
        workers: int = 0,
        save_steps: int = 0,
        save_seconds: float = 60.0,
        report: Callable[[int, int, Tensor], None] | None = None,
    ):
        self.recipe, self.data, self.place, self.folder = recipe, data, place, folder
        self.save_steps, self.save_seconds, self.report = save_steps, save_seconds, report
        self.stop = False  # set by a signal handler; looked at between steps
        device = place.device
        model = build(recipe, data)
        channels, side = model.input_size[0], recipe.image_size or model.input_size[-1]
        self.batches = Batches(
            data, recipe, (channels, side), device, place.rank, place.world, workers
        )
        format = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.model = model.to(device, memory_format=format)
        if recipe.sync_batch_norm and place.world > 1:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.average = None
        if recipe.average:
            self.average = AveragedModel(self.model, multi_avg_fn=self._average, use_buffers=True)
        if recipe.checkpointing:  # after the copy was made: a wrapped forward is bound to its block
            checkpoint_blocks(self.model)
        self.optimizer = optimizer_of(recipe, self.model)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.amp == "fp16")
        self.trained: nn.Module = self.model
        if place.world > 1:
            ids = [device.index] if device.type == "cuda" else None
            self.trained = nn.parallel.DistributedDataParallel(self.model, device_ids=ids)
        if recipe.compile:
            self.trained = torch.compile(self.trained)
        self.epoch = self.step = 0  # the step within the epoch that comes next
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, right, images
        self.history: list[dict] = []
        self.seconds = 0.0
        self.board = None

    # --- state -------------------------------------------------------------------------------

    @property
    def done_steps(self) -> int:
        return self.epoch * self.batches.steps + self.step

    @property
    def finished(self) -> bool:
        return self.epoch >= self.recipe.epochs

    def state(self) -> dict:
        return {
            "recipe": self.recipe.to_dict(),
            "images": self.batches.n,
            "world": self.place.world,
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.place.total(*self.sums.tolist()) if self.step else [0.0] * 3,
            "history": self.history,
            "seconds": self.seconds,
        }

    def load_state(self, state: dict) -> None:
        """Take up a checkpoint's state; ValueError where it is not this run's."""
        mine = self.recipe.to_dict()
        theirs = Recipe.from_dict(state["recipe"]).to_dict()
        if differ := [name for name in mine if mine[name] != theirs[name]]:
            what = ", ".join(f"{n} ({theirs[n]!r} there, {mine[n]!r} here)" for n in differ)
            raise ValueError(f"the checkpoint is of another run: {what}")
        for name, here in (("images", self.batches.n), ("world", self.place.world)):
            if state[name] != here:
                words = {"images": "training images", "world": "processes"}[name]
                raise ValueError(f"the checkpoint was made with {state[name]} {words}, not {here}")
        self.model.load_state_dict(state["model"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step = state["epoch"], state["step"]
        # Sums over all processes: the first takes them up, the others start from zero.
        if self.place.first:
            self.sums.copy_(torch.tensor(state["sums"], dtype=torch.float64))
        self.history, self.seconds = state["history"], state["seconds"]

    def save(self) -> None:
        """Every process calls this (the sums are added up); the first one writes."""
        state = self.state()
        if self.place.first and self.folder is not None:
            checkpoint.save(self.folder / checkpoint.NAME, state)

    # --- training ----------------------------------------------------------------------------

    def _autocast(self):
        if self.recipe.amp == "none":
            return contextlib.nullcontext()
        return torch.autocast(self.place.device.type, AMP[self.recipe.amp])

    def train_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One optimiser step; the loss, detached."""
        recipe, place = self.recipe, self.place
        torch.manual_seed(derive(recipe.seed, DROPOUT, self.epoch, self.step, place.rank))
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(recipe, self.done_steps, self.batches.steps)
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            output = self.trained(images)
            loss = loss_of(recipe, output, labels)
        self.scaler.scale(loss).backward()
        if recipe.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update_parameters(self.model)
        main = (output[0] if isinstance(output, tuple) else output).detach()
        right = (main.argmax(1) == labels).sum()
        n = len(labels)
        self.sums += torch.stack(
            (loss.detach().double() * n, right.double(), n + 0 * right.double())
        )
        return loss.detach()

    def _average(self, averaged, current, count) -> None:
        """A shorter memory in the first steps, or the initial weights would stay in the average."""
        if not averaged[0].is_floating_point():  # counters and indices: an average would break them
            for mine, theirs in zip(averaged, current):
                mine.copy_(theirs)
            return
        decay = min(self.recipe.average, (1 + self.done_steps) / (10 + self.done_steps))
        get_ema_multi_avg_fn(decay)(averaged, current, count)

    def _stop_wanted(self) -> bool:
        """Whether any process was told to stop: asked every 16th step only when there are several."""
        if self.place.world == 1:
            return self.stop
        return self.step % 16 == 0 and self.place.total(float(self.stop))[0] > 0

    def run(self) -> Result:
        """Train to the end from wherever the run is; Stopped after a stop, with a checkpoint."""
        if self.place.first:
            self.board = log.open_board(self.folder, self.done_steps)
        begun = time.perf_counter() - self.seconds
        saved = time.perf_counter()
        while not self.finished:
            self.model.train()
            for images, labels in self.batches.training(self.epoch, self.step):
                loss = self.train_step(images, labels)
                self.step += 1
                self.seconds = time.perf_counter() - begun
                if self.report:
                    self.report(self.epoch, self.step, loss)
                if self._stop_wanted():
                    self.save()
                    raise Stopped
                late = self.place.world == 1 and time.perf_counter() - saved > self.save_seconds
                if late or (self.save_steps and self.step % self.save_steps == 0):
                    self.save()
                    saved = time.perf_counter()
            self._end_epoch(begun)
            saved = time.perf_counter()
        result = self.evaluate()
        if self.board:
            self.board.close()
        return result

    def _end_epoch(self, begun: float) -> None:
        loss, right, images = self.place.total(*self.sums.tolist())
        test = self.evaluate()
        self.seconds = time.perf_counter() - begun
        row = {
            "epoch": self.epoch + 1,
            "steps": (self.epoch + 1) * self.batches.steps,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": loss / images,
            "train_accuracy": 100 * right / images,
            "test_loss": test.loss,
            "test_accuracy": test.accuracy,
            "seconds": self.seconds,
        }
        if not torch.isfinite(torch.tensor(row["train_loss"])):
            raise RuntimeError(
                f"the training loss is {row['train_loss']} after epoch {row['epoch']}: try a smaller "
                f"lr than {self.recipe.lr}, a longer warmup, or clip"
            )
        self.history.append(row)
        self.sums.zero_()
        self.epoch, self.step = self.epoch + 1, 0
        self.save()
        if self.place.first and self.folder is not None:
            title = f"{self.recipe.model} on {self.data.name}"
            log.write(self.folder, self.history, title, self.recipe.tested)
        if self.board:
            log.to_board(self.board, row)

    @torch.no_grad()
    def evaluate(self) -> Result:
        """Loss and accuracy on the test or held-out images; with the averaged weights if there are any."""
        net = self.average.module if self.average else self.model
        if self.place.world > 1:  # batch norm's running averages are each process's own
            for buffer in net.buffers():
                dist.broadcast(buffer, 0)
        was_training = net.training
        net.eval()
        outputs, targets = [], []
        for images, labels in self.batches.testing(size=512 if self.batches.side < 64 else 64):
            with self._autocast():
                outputs.append(net(images).float())
            targets.append(labels)
        net.train(was_training)
        if outputs:
            output, target = torch.cat(outputs), torch.cat(targets)
        else:  # fewer test images than processes
            output = torch.zeros(0, len(self.data.classes), device=self.place.device)
            target = torch.zeros(0, dtype=torch.int64, device=self.place.device)
        n = len(target)
        loss = float(loss_of(self.recipe, output, target)) * n if n else 0.0
        right = float((output.argmax(1) == target).sum())
        loss, right, n = self.place.total(loss, right, n)
        probabilities = (output / self.recipe.temperature).softmax(1)
        return Result(100 * right / n, loss / n, probabilities, target, self.history, net)
