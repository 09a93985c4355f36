// Host side shared by the convolution launchers: planned maps to driver maps, kernel launches.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <atomic>
#include <tuple>

#include "common/sm90/tensor_map.h"
#include "conv2d/conv2d.h"
#include "plan/direct_cache.h"

namespace cnnkernels {

// Operands (inputs and weights) are rounded to TF32 on the way in; outputs and residuals are not.
// An encoded map depends on nothing but these arguments, so a thread keeps its last ones.
inline cudaError_t encode(CUtensorMap* map, const plan::TensorMap& m, Dtype dtype, const void* base,
                          bool operand) {
  struct Encoded {
    CUtensorMap map;
    cudaError_t error;
  };
  using Key = std::tuple<plan::MapKey, const void*, Dtype, bool>;
  static thread_local plan::DirectCache<Key, Encoded, 256> cache;
  const plan::MapKey words = plan::map_key(m);
  const uint64_t hash = plan::hash_words(words) ^ reinterpret_cast<uintptr_t>(base) / 16 * 31;
  const Encoded& encoded = cache.get({words, base, dtype, operand}, hash, [&] {
    Encoded e;
    void* start = const_cast<void*>(base);
    e.error = m.im2col
                  ? sm90::encode_im2col(&e.map, dtype, start, m.dims, m.strides, m.lower, m.upper,
                                        m.box[0], m.box[1], m.element_strides, m.swizzle, operand)
                  : sm90::encode_tiled(&e.map, dtype, m.rank, start, m.dims, m.strides, m.box,
                                       m.swizzle, operand);
    return e;
  });
  *map = encoded.map;
  return encoded.error;
}

struct LaunchShape {
  int grid, shared_bytes;
  int cluster = 1;
  bool early_start = false;  // before the stream's previous kernel has ended
  int threads = 384;         // of a block
};

template <auto kKernel, class... Args>
cudaError_t launch_kernel(const LaunchShape& shape, cudaStream_t stream, const Args&... args) {
  static std::atomic<uint64_t> prepared{0};  // devices on which it may take all shared memory
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  const uint64_t bit = uint64_t{1} << device % 64;
  if (error == cudaSuccess && (device >= 64 || !(prepared.load() & bit))) {
    error = cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 plan::kSharedLimit);
    if (error == cudaSuccess) prepared.fetch_or(bit);
  }
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid, config.blockDim = shape.threads;
  config.dynamicSmemBytes = shape.shared_bytes, config.stream = stream;
  config.attrs = attributes;
  if (shape.cluster > 1) {
    cudaLaunchAttribute& a = attributes[config.numAttrs++];
    a.id = cudaLaunchAttributeClusterDimension;
    a.val.clusterDim.x = shape.cluster, a.val.clusterDim.y = a.val.clusterDim.z = 1;
  }
  if (shape.early_start) {
    cudaLaunchAttribute& a = attributes[config.numAttrs++];
    a.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    a.val.programmaticStreamSerializationAllowed = 1;
  }
  return cudaLaunchKernelEx(&config, kKernel, args...);
}

// Calls f with a zero of the kernel's element type (float: TF32 arithmetic).
template <class F>
cudaError_t dispatch_type(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::bf16: return f(__nv_bfloat16{});
    case Dtype::f16: return f(__half{});
    case Dtype::f32: return f(float{});
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace cnnkernels
