"""The README's Python runs as it stands, with ``import cnnkernels`` alone; its commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cnnkernels import cli
from cnnkernels.models import list_models

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
NAMES = """
import torch
x, weight, bias = torch.randn(2, 8, 16, 16), torch.randn(8, 8, 7, 7), torch.randn(8)
residual, example_input = torch.randn(2, 8, 10, 10), x
model = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3), torch.nn.ReLU())
"""


def test_python_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 4 and blocks[0].startswith("import cnnkernels\n")
    program = [sys.executable, "-c", NAMES + "\n".join(blocks)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]


def test_commands_exist():
    commands = {
        words.strip() for words in re.findall(r"^cnnkernels ((?:bench )?\w+)", README, re.M)
    }
    commands -= {f"bench {name}" for name in list_models()}  # networks: `bench` alone takes them
    assert len(commands) >= 8
    for command in sorted(commands):
        with pytest.raises(SystemExit) as ended:
            cli.main([*command.split(), "--help"])
        assert not ended.value.code, f"cnnkernels {command} is not a command"
