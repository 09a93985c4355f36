"""The build and what it makes: flags of setup.py, symbols of the libraries, the wheel's contents."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cnnkernels"


@pytest.fixture(scope="module")
def setup_module():
    """setup.py's functions, without running setup()."""
    source = (ROOT / "setup.py").read_text().split("\nsetup(")[0]
    spec = importlib.util.spec_from_loader("cnnkernels_setup", loader=None)
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(ROOT / "setup.py")
    exec(compile(source, "setup.py", "exec"), module.__dict__)
    return module


@pytest.mark.parametrize(
    "arch_list, expected",
    [
        ("8.0;9.0a+PTX", "80-real;90a-real;90-virtual"),
        ("8.9", "89-real"),
        ("8.0 12.0+PTX", "80-real;120-real;120-virtual"),
    ],
)
def test_architectures(setup_module, arch_list, expected):
    assert setup_module.cmake_architectures(arch_list) == expected


def test_bad_architecture_is_named(setup_module):
    with pytest.raises(SystemExit, match="'Hopper' is not of the form"):
        setup_module.cmake_architectures("8.0;Hopper")


def test_nvcc_wrapper_is_followed_to_its_toolkit(setup_module, tmp_path, monkeypatch):
    toolkit = tmp_path / "toolkit/bin"
    toolkit.mkdir(parents=True)
    (toolkit / "nvcc").write_text("#!/bin/sh\n")
    wrapper = tmp_path / "wrapper/nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text(f"#!/bin/sh\necho '#$ TOP={toolkit}/..' >&2\n")
    for path in (wrapper, toolkit / "nvcc"):
        path.chmod(0o755)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:/usr/bin:/bin")
    assert setup_module.find_nvcc() == str(toolkit / "nvcc")


def test_cuda_switch_is_checked(tmp_path):
    run = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-temp", tmp_path, "--build-lib", tmp_path],
        cwd=ROOT, env={"CNNKERNELS_CUDA": "yes", "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (
        run.returncode != 0 and "CNNKERNELS_CUDA is 'yes'; allowed are 0, 1 and auto" in run.stderr
    )


def needed(library: Path) -> set[str]:
    """Shared libraries a library asks for (readelf's NEEDED entries)."""
    if shutil.which("readelf") is None:
        pytest.skip("readelf (binutils) is not installed")
    out = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True)
    return set(re.findall(r"NEEDED.*\[(.+?)\]", out.stdout))


@pytest.mark.parametrize("name", ["libcnnkernels_cpu.so", "libcnnkernels_cuda.so"])
def test_libraries_link_torch_by_name_and_no_cuda_runtime(name):
    library = PACKAGE / name
    if not library.exists():
        pytest.skip(f"{name} was not built")
    libraries = needed(library)
    assert {"libtorch.so", "libtorch_cpu.so", "libc10.so"} <= libraries
    assert not any(n.startswith(("libcudart", "libcuda.so", "libpython")) for n in libraries)


def ptxas_report() -> dict[str, dict[str, int]]:
    """Per kernel and architecture: registers, stack and spill bytes, from the build's log."""
    logs = sorted((ROOT / "build").glob("temp*/build.log"))
    if not logs:
        pytest.skip("no build log: the package was not built from this tree")
    report, name = {}, None
    for line in logs[-1].read_text(errors="replace").splitlines():
        if match := re.search(r"Compiling entry function '(\S+)' for '(\S+)'", line):
            name = f"{match[1]} {match[2]}"
        elif name and (match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line)):  # fmt: skip
            report[name] = {"stack": int(match[1]), "spills": int(match[2]) + int(match[3])}
        elif name and (match := re.search(r"Used (\d+) registers", line)):
            report.setdefault(name, {})["registers"] = int(match[1])
    if not report:
        pytest.skip("the build had no CUDA")
    return report


def test_no_kernel_spills():
    spilling = {name: r for name, r in ptxas_report().items() if r.get("spills", 0)}
    assert not spilling, f"register spills: {spilling}"


def test_build_info():
    from cnnkernels import _lib

    info = _lib.plan.build_info()
    assert info["version"] == importlib.import_module("cnnkernels").__version__
    if (PACKAGE / "libcnnkernels_cuda.so").exists():
        assert (
            info["cuda"].startswith("1") and "add_relu/add_relu_cuda.cu" in info["kernel_sources"]
        )
        assert info["cuda_architectures"]
