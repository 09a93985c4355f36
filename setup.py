"""Builds the compiled parts with CMake + Ninja; the description of the build is CMakeLists.txt.

Environment: CNNKERNELS_CUDA=0|1|auto (default auto: the CUDA library is built where nvcc is),
TORCH_CUDA_ARCH_LIST (default "8.0;9.0a+PTX"), MAX_JOBS, CNNKERNELS_TARGETS (default: all).
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
DEFAULT_ARCHITECTURES = "8.0;9.0a+PTX"


def find_nvcc():
    """The nvcc binary of $CUDA_HOME, PATH or the usual place, or None.

    An nvcc on PATH may be a wrapper script, so its own dry run tells where the toolkit is.
    """
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [f"{home}/bin/nvcc"] if home else []
    candidates += [shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    for candidate in candidates:
        if not candidate or not os.access(candidate, os.X_OK):
            continue
        dryrun = subprocess.run(
            [candidate, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True
        )
        top = re.search(r"^#\$ TOP=(.*)$", dryrun.stderr, re.MULTILINE)
        if top and (nvcc := Path(top[1].strip()).resolve() / "bin" / "nvcc").exists():
            return str(nvcc)
        return candidate
    return None


def cmake_architectures(arch_list):
    """TORCH_CUDA_ARCH_LIST ("8.0;9.0a+PTX") as CMake's CUDA_ARCHITECTURES ("80-real;90a-real;90-virtual").

    PTX of an architecture-specific target (9.0a) runs nowhere else, so its PTX is the plain target's.
    """
    result = []
    for entry in re.split(r"[;\s]+", arch_list.strip()):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
        if not match:
            raise SystemExit(
                f"TORCH_CUDA_ARCH_LIST: {entry!r} is not of the form 8.0, 9.0a or 9.0a+PTX "
                f"(whole value: {arch_list!r})"
            )
        major, minor, specific, ptx = match.groups()
        result.append(f"{major}{minor}{specific}-real")
        if ptx:
            result.append(f"{major}{minor}-virtual")
    return ";".join(result)


class CMakeBuild(build_ext):
    """One CMake build for all compiled parts."""

    def run(self):
        import pybind11
        import torch

        wanted = os.environ.get("CNNKERNELS_CUDA", "auto").lower()
        if wanted not in ("0", "1", "auto"):
            raise SystemExit(f"CNNKERNELS_CUDA is {wanted!r}; allowed are 0, 1 and auto")
        nvcc = find_nvcc() if wanted != "0" else None
        if wanted == "1" and nvcc is None:
            raise SystemExit("CNNKERNELS_CUDA=1, but no nvcc was found on PATH or in CUDA_HOME")
        targets = os.environ.get("CNNKERNELS_TARGETS", "cpu;plan;cuda").split(";")
        if nvcc is None and "cuda" in targets:
            targets.remove("cuda")
            why = "CNNKERNELS_CUDA=0" if wanted == "0" else "no nvcc found"
            print(f"cnnkernels: CUDA library not built ({why}); CPU and Triton kernels only")

        torch_root = Path(torch.__file__).parent
        include = [torch_root / "include", torch_root / "include/torch/csrc/api/include"]
        package = (
            ROOT / "cnnkernels" if self.inplace else Path(self.build_lib).resolve() / "cnnkernels"
        )
        # In place (also `pip install -e`): a folder that stays, for quick rebuilds and for the log.
        build = ROOT / "build" / "temp.inplace" if self.inplace else Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake", "-S", ROOT, "-B", build, "-G", "Ninja",
            f"-DCNNKERNELS_VERSION={self.distribution.get_version()}",
            f"-DCNNKERNELS_TARGETS={';'.join(targets)}",
            f"-DCNNKERNELS_OUTPUT={package}",
            f"-DCNNKERNELS_TORCH_INCLUDE={';'.join(map(str, include))}",
            f"-DCNNKERNELS_TORCH_LIB={torch_root / 'lib'}",
            f"-DCNNKERNELS_TORCH_VERSION={torch.__version__}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DPython_INCLUDE_DIR={sysconfig.get_path('include')}",
        ]  # fmt: skip
        if "cuda" in targets:
            arch_list = os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES
            configure += [
                f"-DCMAKE_CUDA_COMPILER={nvcc}",
                f"-DCNNKERNELS_CUDA_ARCHITECTURES={cmake_architectures(arch_list)}",
            ]
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        subprocess.run(list(map(str, configure)), check=True)
        # The log keeps ptxas's report of registers and spills: tests read it.
        with (build / "build.log").open("a") as log:
            command = ["cmake", "--build", str(build), "--parallel", jobs, "--verbose"]
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            tail = []
            for line in process.stdout:
                log.write(line)
                tail = [*tail[-200:], line]
            if process.wait() != 0:
                sys.stdout.writelines(tail)
                raise SystemExit(f"the build failed; the whole log is in {build}/build.log")

    def get_outputs(self):
        return []


# models/ and bench/ lie at the top level of the repository and install inside the package.
INSIDE = {"cnnkernels.models": "models", "cnnkernels.bench": "bench"}

setup(
    packages=[*find_packages(include=["cnnkernels", "cnnkernels.*"]), *INSIDE],
    package_dir=INSIDE,
    ext_modules=[Extension("cnnkernels._plan", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
