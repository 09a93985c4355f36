"""The accuracies that the README promises, on whole data sets: minutes, so only where there is data.

The data is looked for in $CNNKERNELS_DATA_DIR, else in ``shared/data`` beside the repository.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("CNNKERNELS_DATA_DIR") or ROOT.parent / "shared" / "data")
LONG = os.environ.get("CNNKERNELS_LONG_TESTS") == "1"


def accuracy(tmp_path, *arguments) -> float:
    done = subprocess.run(
        [sys.executable, "-m", "cnnkernels.cli", "train", *map(str, arguments), "--no-download",
         "--data-dir", str(DATA), "--out", str(tmp_path / "run"), "--device", "cpu"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    words = done.stdout.splitlines()[-1].split()
    assert words[:2] == ["test", "accuracy:"] and words[3] == "%"
    print(*arguments, done.stdout.splitlines()[-1])  # shown by pytest -s
    return float(words[2])


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "mnist10k.npz").exists(), reason=f"no mnist10k.npz in {DATA}")
def test_modern_lenet_reads_digits(tmp_path):
    """A shorter run than the recipe's, which gives 99 %."""
    assert accuracy(tmp_path, "lenet5_modern", "--data", "digits", "--epochs", 15) >= 98.3


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(not LONG, reason="minutes of training: set CNNKERNELS_LONG_TESTS=1")
@pytest.mark.skipif(not DATA.exists(), reason=f"there is no {DATA}")
@pytest.mark.parametrize("model", ["lenet5", "lenet5_modern"])
@pytest.mark.parametrize(("data", "target"), [("digits", 98.5), ("fashion-mnist", 90.5)])
def test_promised_accuracies(tmp_path, model, data, target):
    assert accuracy(tmp_path, model, "--data", data) >= target
