// Planner of the memory-bound ops for Python: window counts, kernel choices, tiles.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>

#include "plan/lrn_pool.h"

namespace py = pybind11;

namespace {

using cnnkernels::Dtype;
using cnnkernels::Layout;
using Pair = std::array<int, 2>;

Dtype parse_dtype(const std::string& name) {
  if (name == "float32") return Dtype::f32;
  if (name == "float16") return Dtype::f16;
  if (name == "bfloat16") return Dtype::bf16;
  throw std::invalid_argument("dtype must be float32, float16 or bfloat16, got " + name);
}

cnnkernels::PoolShape pool_shape(std::array<int64_t, 4> size, Pair kernel, Pair stride,
                                 Pair padding, Pair dilation, bool ceil_mode) {
  cnnkernels::PoolShape s;
  s.n = size[0], s.c = size[1];
  s.h = static_cast<int>(size[2]), s.w = static_cast<int>(size[3]);
  s.kernel_h = kernel[0], s.kernel_w = kernel[1];
  s.stride_h = stride[0], s.stride_w = stride[1];
  s.pad_h = padding[0], s.pad_w = padding[1];
  s.dilation_h = dilation[0], s.dilation_w = dilation[1];
  using cnnkernels::plan::pooled_size;
  s.oh =
      static_cast<int>(pooled_size(s.h, s.kernel_h, s.stride_h, s.pad_h, s.dilation_h, ceil_mode));
  s.ow =
      static_cast<int>(pooled_size(s.w, s.kernel_w, s.stride_w, s.pad_w, s.dilation_w, ceil_mode));
  return s;
}

std::string pool_kernel(std::array<int64_t, 4> size, Pair kernel, Pair stride, Pair padding,
                        Pair dilation, bool ceil_mode, const std::string& dtype, bool channels_last,
                        bool aligned) {
  const auto s = pool_shape(size, kernel, stride, padding, dilation, ceil_mode);
  const int vector = parse_dtype(dtype) == Dtype::f32 ? 4 : 8;
  const bool vectors = aligned && s.c % vector == 0 && s.kernel_h * s.kernel_w <= 255;
  return cnnkernels::plan::pool_kernel_name(cnnkernels::plan::choose_pool_kernel(
      s, channels_last ? Layout::nhwc : Layout::nchw, vectors));
}

std::string lrn_kernel(int64_t channels, int size, double alpha, double beta, double k,
                       const std::string& dtype, bool channels_last, bool aligned) {
  cnnkernels::LrnShape s;
  s.c = channels, s.size = size, s.alpha = alpha, s.beta = beta, s.k = k;
  const Dtype type = parse_dtype(dtype);
  const bool vectors = aligned && channels % (type == Dtype::f32 ? 4 : 8) == 0;
  return cnnkernels::plan::lrn_kernel_name(cnnkernels::plan::choose_lrn_kernel(
      s, type, channels_last ? Layout::nhwc : Layout::nchw, vectors));
}

}  // namespace

void bind_pool(py::module_& m) {
  m.def("pooled_size", &cnnkernels::plan::pooled_size, py::arg("size"), py::arg("kernel"),
        py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("ceil_mode"),
        "Windows along one dimension, torch's rule (ceil mode drops a window that would start "
        "beyond the input and its left padding); 0 where the kernel does not fit.");
  m.def("first_valid_tap", &cnnkernels::plan::first_valid_tap, py::arg("start"),
        py::arg("dilation"), "Smallest tap t with start + t * dilation >= 0.");
  m.def("max_pool2d_kernel", &pool_kernel, py::arg("size"), py::arg("kernel"), py::arg("stride"),
        py::arg("padding"), py::arg("dilation"), py::arg("ceil_mode"), py::arg("dtype"),
        py::arg("channels_last"), py::arg("aligned") = true,
        "CUDA max-pool kernel of a call: 'vector', 'planes', 'any_vector' or 'any'.");
  m.def("lrn_kernel", &lrn_kernel, py::arg("channels"), py::arg("size"), py::arg("alpha"),
        py::arg("beta"), py::arg("k"), py::arg("dtype"), py::arg("channels_last"),
        py::arg("aligned") = true, "CUDA LRN kernel of a call: 'vector', 'planes' or 'any'.");
  m.def(
      "lrn_window",
      [](int size) {
        return std::array<int, 2>{cnnkernels::plan::lrn_front(size),
                                  cnnkernels::plan::lrn_back(size)};
      },
      py::arg("size"), "Channels of an LRN window before and after its own (torch's rule).");
  m.def(
      "pool_plane_tile",
      [](int64_t plane_bytes, int units, int64_t unit_bytes, int64_t planes) {
        const auto t = cnnkernels::plan::plane_tile(plane_bytes, units, unit_bytes, planes);
        return std::array<int, 3>{t.planes, t.rows, t.bands};
      },
      py::arg("plane_bytes"), py::arg("units"), py::arg("unit_bytes"), py::arg("planes"),
      "(planes, rows, bands) of a block of the NCHW pool kernels.");
  m.def("pool_strip_rows", &cnnkernels::plan::strip_rows, py::arg("rows"), py::arg("columns"),
        py::arg("threads"), py::arg("lead"), py::arg("step"),
        "Rows per item of the NCHW pool kernels.");
  m.def(
      "lrn_tile",
      [](int64_t images, int64_t channels, int64_t pixels, int most, int stage, int lag,
         int resident) {
        cnnkernels::LrnShape s;
        s.n = images, s.c = channels, s.pixels = pixels;
        const auto t = cnnkernels::plan::lrn_tile(s, most, stage, lag, resident);
        return std::array<int, 4>{t.pixels, t.pixel_tiles, t.channels, t.channel_tiles};
      },
      py::arg("images"), py::arg("channels"), py::arg("pixels"), py::arg("most"), py::arg("stage"),
      py::arg("lag"), py::arg("resident"),
      "(pixels, pixel_tiles, channels, channel_tiles) of a block of the NCHW LRN kernels with at "
      "most `most` pixels.");
  m.def(
      "lrn_pool_rows",
      [](std::array<int64_t, 4> size, Pair padding, bool ceil_mode, const std::string& dtype) {
        return cnnkernels::plan::lrn_pool_rows(
            pool_shape(size, {3, 3}, {2, 2}, padding, {1, 1}, ceil_mode), parse_dtype(dtype));
      },
      py::arg("size"), py::arg("padding"), py::arg("ceil_mode"), py::arg("dtype"),
      "Output rows of a block of the fused NCHW LRN and 3x3/2 max-pool; 0: two kernels run.");
}
