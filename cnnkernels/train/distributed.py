"""Several processes under torchrun: gloo on CPUs, NCCL on GPUs. One process needs nothing of this."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Place:
    """Which process this is, of how many, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def total(self, *values: float) -> list[float]:
        """Sums over all processes, in fp64."""
        if self.world == 1:
            return list(values)
        # MPS has no fp64, but no process group either.
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return sums.tolist()

    def wait(self) -> None:
        """Until every process has come here."""
        self.total(0.0)

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process runs the body before the others: one download, not several."""
        if self.first:
            try:
                yield
            finally:
                self.wait()
        else:
            self.wait()
            yield


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}; it must be auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device is {name!r}, but torch sees no CUDA device")
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise ValueError(
                f"device is {device}; there are {torch.cuda.device_count()} CUDA devices"
            )
        torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def place(device: str = "auto") -> Iterator[Place]:
    """This process's place; under torchrun the process group is opened here, and closed after."""
    # torchrun sets these; without it there is one process.
    world = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    rank = int(os.environ.get("RANK", "0")) if world > 1 else 0
    chosen = _device(device, int(os.environ.get("LOCAL_RANK", "0")) if world > 1 else 0)
    if world == 1 or dist.is_initialized():
        yield Place(rank, world, chosen)
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Place(rank, world, chosen)
    finally:
        dist.destroy_process_group()
