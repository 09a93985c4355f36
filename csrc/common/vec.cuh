// 16-byte vectors of fp32/fp16/bf16: loads, stores, conversion to and from fp32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace cnnkernels {

template <class T>
inline constexpr int kVecSize = 16 / sizeof(T);  // elements per 16-byte access

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

template <class T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) {
  return v;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

// A 16-byte register vector; unpack() and pack() are resolved at compile time.
template <class T>
struct alignas(16) Vec {
  T e[kVecSize<T>];

  __device__ static Vec load(const T* p) {
    Vec v;
    *reinterpret_cast<uint4*>(v.e) = *reinterpret_cast<const uint4*>(p);
    return v;
  }
  __device__ void store(T* p) const {
    *reinterpret_cast<uint4*>(p) = *reinterpret_cast<const uint4*>(e);
  }
};

}  // namespace cnnkernels
