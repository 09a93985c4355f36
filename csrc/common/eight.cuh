// Eight consecutive elements per thread, for element-wise kernels with a 1-bit mask: the thread's
// mask byte is its own. One 16-byte access (two for fp32), or scalars at odd starts and at the end.
#pragma once

#include "common/vec.cuh"

namespace cnnkernels {

constexpr int kEight = 8;

// Loads 8 elements as fp32; `count` < 8 only in the last thread, the rest are 0.
template <class T>
__device__ __forceinline__ void load8(const T* p, bool aligned, int count, float* f) {
  if (aligned && count == kEight) {
#pragma unroll
    for (int v = 0; v < kEight / kVecSize<T>; ++v) {
      const auto vec = Vec<T>::load(p + v * kVecSize<T>);
#pragma unroll
      for (int e = 0; e < kVecSize<T>; ++e) f[v * kVecSize<T> + e] = to_float(vec.e[e]);
    }
  } else {
#pragma unroll
    for (int e = 0; e < kEight; ++e) f[e] = e < count ? to_float(p[e]) : 0.f;
  }
}

template <class T>
__device__ __forceinline__ void store8(T* p, bool aligned, int count, const float* f) {
  if (aligned && count == kEight) {
#pragma unroll
    for (int v = 0; v < kEight / kVecSize<T>; ++v) {
      Vec<T> vec;
#pragma unroll
      for (int e = 0; e < kVecSize<T>; ++e) vec.e[e] = from_float<T>(f[v * kVecSize<T> + e]);
      vec.store(p + v * kVecSize<T>);
    }
  } else {
#pragma unroll
    for (int e = 0; e < kEight; ++e)
      if (e < count) p[e] = from_float<T>(f[e]);
  }
}

}  // namespace cnnkernels
