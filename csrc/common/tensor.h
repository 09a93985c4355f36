// What every binding needs from torch's stable ABI: checks, element type, layout, allocation.
// Included by *_bind.cpp and *_cpu.cpp only; kernels never see torch.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common/types.h"

namespace cnnkernels {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

inline std::string to_string(const Tensor& t) {
  std::string s = "[";
  for (int64_t i = 0; i < t.dim(); ++i) s += (i ? ", " : "") + std::to_string(t.size(i));
  return s + "]";
}

inline Dtype dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return Dtype::f32;
    case ScalarType::Half: return Dtype::f16;
    case ScalarType::BFloat16: return Dtype::bf16;
    case ScalarType::Double: return Dtype::f64;
    default: STD_TORCH_CHECK(false, name, " must be float32, float16, bfloat16 or float64");
  }
}

// A tensor whose strides are those of torch.channels_last; dimensions of size 1 carry no
// information.
inline bool is_channels_last(const Tensor& t) {
  if (t.dim() != 4) return false;
  int64_t expected = 1;
  for (int64_t d : {1, 3, 2, 0}) {
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

// Layout of a dense 4-D tensor. Where both hold (C == 1 or H == W == 1) the answer is nchw, the
// same rule as cnnkernels.ops._op.memory_format, so that fake and real outputs have the same
// strides; a kernel that needs NHWC memory asks is_channels_last() instead.
inline Layout layout_of(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() == 4, name, " must have 4 dimensions [N, C, H, W], got ", to_string(t));
  if (t.is_contiguous()) return Layout::nchw;
  STD_TORCH_CHECK(is_channels_last(t), name, " must be contiguous or channels_last, shape ",
                  to_string(t));
  return Layout::nhwc;
}

// An uninitialised tensor of `sizes` with like's device; dtype and memory format as given.
inline Tensor empty_like_device(const Tensor& like, const Ints& sizes, ScalarType dtype,
                                Layout layout = Layout::nchw) {
  const bool nhwc = layout == Layout::nhwc && sizes.size() == 4;
  return torch::stable::empty(sizes, dtype, std::nullopt, like.device(), std::nullopt,
                              nhwc ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// An uninitialised tensor of t's sizes, strides, dtype and device (t dense).
inline Tensor empty_same(const Tensor& t) { return torch::stable::empty_like(t); }

inline void check_same_device(const Tensor& a, const Tensor& b, const char* name) {
  STD_TORCH_CHECK(a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index(), name,
                  " must be on the input's device");
}

#ifdef USE_CUDA
// The current CUDA stream of t's device, as a cudaStream_t.
inline void* current_stream(const Tensor& t) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return stream;
}
using torch::stable::accelerator::DeviceGuard;
#endif

}  // namespace cnnkernels
