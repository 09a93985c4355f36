// Host side shared by the convolution launchers: planned maps to driver maps, kernel attributes.
#pragma once

#include "common/sm90/tensor_map.h"
#include "conv2d/conv2d.h"

namespace cnnkernels {

// Operands (inputs and weights) are rounded to TF32 on the way in; outputs and residuals are not.
inline cudaError_t encode(CUtensorMap* map, const plan::TensorMap& m, Dtype dtype, const void* base,
                          bool operand) {
  void* start = const_cast<void*>(base);
  if (m.im2col)
    return sm90::encode_im2col(map, dtype, start, m.dims, m.strides, m.lower, m.upper, m.box[0],
                               m.box[1], m.element_strides, m.swizzle, operand);
  return sm90::encode_tiled(map, dtype, m.rank, start, m.dims, m.strides, m.box, m.swizzle,
                            operand);
}

// Launches `kernel` with `shared_bytes` of dynamic shared memory on 384 threads a block.
template <class... Params, class... Args>
cudaError_t launch_kernel(void (*kernel)(Params...), int grid, int shared_bytes,
                          cudaStream_t stream, const Args&... args) {
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) return error;
  kernel<<<grid, 384, shared_bytes, stream>>>(args...);
  return cudaGetLastError();
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
