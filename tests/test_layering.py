"""Imports form a DAG: each layer imports only layers before it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Lowest first. Packages in one row do not import each other.
LAYERS = [
    {"_lib", "_triton", "testing"},
    {"tuning"},
    {"ops"},
    {"nn"},
    {"models", "data"},
    {"optimize"},
    {"analysis"},
    {"bench", "train"},
    {"cli"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# A folder's commands.py is its command line and may use any layer below the cli.
COMMANDS = len(LAYERS) - 1


def layer_of(path: Path) -> str | None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "cnnkernels":
        parts = parts[1:]
    return parts[0] if parts[0] in RANK else None


def imports_of(path: Path):
    """Names of our layers that the file imports, at any depth, relative imports resolved."""
    relative = path.relative_to(ROOT).with_suffix("").parts
    module = relative if relative[0] == "cnnkernels" else ("cnnkernels", *relative)
    package = module if path.name == "__init__.py" else module[:-1]
    package = package[:-1] if path.name == "__init__.py" else package
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            targets = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for target in targets:
            if target[0] in ("tests", "models", "bench"):
                yield f"top-level {target[0]}"
            elif target[0] == "cnnkernels" and len(target) > 1 and target[1] in RANK:
                yield target[1]


def python_files():
    for folder in ("cnnkernels", "models", "bench"):
        yield from sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", list(python_files()), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_lower_layers(path):
    own = layer_of(path)
    if own is None:
        return
    rank = COMMANDS if path.name == "commands.py" else RANK[own]
    for name in imports_of(path):
        assert not name.startswith("top-level"), f"{path} imports {name}, a second copy of it"
        allowed = name == own or RANK[name] < rank
        assert allowed, f"{path} ({own}) imports {name}, a layer at or above its own"


def includes_of(path: Path):
    return re.findall(r'^\s*#include\s+[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "csrc").rglob("*.*")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_csrc_layers(path):
    """plan, common ← kernels ← bindings; kernels know no torch, no op includes another op."""
    folder = path.relative_to(ROOT / "csrc").parts[0]
    binding = path.name.endswith(("_bind.cpp", "_cpu.cpp"))
    for include in includes_of(path):
        first = include.split("/")[0]
        if folder == "plan":
            assert first not in ("torch", "common") or include == "common/types.h", include
            assert not include.startswith("cuda"), f"{path}: the planner has no CUDA"
        if folder not in ("plan", "common") and not binding:
            assert first != "torch", f"{path}: a kernel file includes torch"
            assert include not in ("common/tensor.h", "common/cpu.h"), f"{path} includes {include}"
        if folder not in ("plan", "common") and (ROOT / "csrc" / first).is_dir():
            assert first in (folder, "plan", "common"), f"{path}: op {folder} includes op {first}"


def test_files_are_short():
    for path in [*python_files(), *(ROOT / "csrc").rglob("*.*"), *(ROOT / "tests").glob("*.py")]:
        lines = path.read_text().count("\n")
        assert lines <= 500, f"{path.relative_to(ROOT)} has {lines} lines; split it (limit 500)"
