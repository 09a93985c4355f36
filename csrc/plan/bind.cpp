// cnnkernels._plan: the planner of the compiled kernels, plus the facts of this build.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <string>
#include <vector>

namespace py = pybind11;

// Every csrc/plan/bind_*.cpp defines one of these; CMake lists them, so adding a file is enough.
#define CNNKERNELS_BINDER(name) void name(py::module_&);
#include "plan_binders.inc"
#undef CNNKERNELS_BINDER

namespace {

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);)
    if (!part.empty()) parts.push_back(part);
  return parts;
}

py::dict build_info() {
  py::dict info;
  info["version"] = CNNKERNELS_VERSION;
  info["cuda"] = CNNKERNELS_CUDA_VERSION[0] ? py::cast(CNNKERNELS_CUDA_VERSION) : py::none();
  info["cuda_architectures"] = split(CNNKERNELS_CUDA_ARCHITECTURES, ',');
  info["kernel_sources"] = split(CNNKERNELS_KERNEL_SOURCES, ',');
  info["compiler"] = CNNKERNELS_COMPILER;
  info["torch"] = CNNKERNELS_TORCH_VERSION;
  info["torch_target"] = CNNKERNELS_TORCH_TARGET;
  return info;
}

}  // namespace

PYBIND11_MODULE(_plan, m) {
  m.doc() = "Host arithmetic of the compiled kernels: problem sizes, tiles, bytes, FLOPs, choices.";
  m.def("build_info", &build_info, "Facts of this build: CUDA version, architectures, sources.");
#define CNNKERNELS_BINDER(name) name(m);
#include "plan_binders.inc"
#undef CNNKERNELS_BINDER
}
