"""Settings and fixtures shared by all tests."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    # Triton kernels run in its interpreter, on CPU tensors. A @triton.jit function becomes compiled
    # or interpreted where it is decorated, so this is set before anything imports them.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest


def pytest_collection_modifyitems(config, items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU; torch sees none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
