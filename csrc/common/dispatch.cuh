// Host-side helpers of the launchers: dtype switch, alignment, slices of the batch.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/types.h"
#include "common/vec.cuh"

namespace cnnkernels {

// Calls fn with a value of the element type; fp64 has no kernel here.
template <class Fn>
cudaError_t dispatch_dtype(Dtype dtype, Fn&& fn) {
  switch (dtype) {
    case Dtype::f32: return fn(float{});
    case Dtype::f16: return fn(__half{});
    case Dtype::bf16: return fn(__nv_bfloat16{});
    default: return cudaErrorInvalidValue;
  }
}

inline bool aligned_to(const void* p, int bytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Kernels index threads with 31 bits. slices(images, per_image, fn) calls fn(first, count) for
// pieces of the batch small enough; a single image must fit.
constexpr int64_t kMaxThreads = (int64_t{1} << 31) - 1024;
template <class Fn>
cudaError_t for_slices(int64_t images, int64_t threads_per_image, Fn&& fn) {
  if (images == 0 || threads_per_image == 0) return cudaSuccess;
  const int64_t step = kMaxThreads / threads_per_image;
  if (step == 0) return cudaErrorInvalidValue;
  for (int64_t first = 0; first < images; first += step) {
    const cudaError_t error = fn(first, std::min(step, images - first));
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

// Raises the kernel's shared-memory limit where `bytes` exceeds the default 48 KB.
template <class Kernel>
cudaError_t allow_shared(Kernel* kernel, int bytes) {
  if (bytes <= 48 * 1024) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

}  // namespace cnnkernels
