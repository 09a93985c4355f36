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


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty user cache, forgotten again afterwards."""
    from cnnkernels import tuning

    monkeypatch.setenv("CNNKERNELS_CACHE_DIR", str(tmp_path))
    tuning.forget()
    yield tmp_path
    monkeypatch.undo()
    tuning.forget()
