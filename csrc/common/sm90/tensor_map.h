// Host side of TMA: encoding tensor maps through the driver's entry point, without linking libcuda.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "common/types.h"

namespace cnnkernels::sm90 {

template <class Function>
Function driver_function(const char* name) {
  void* fn = nullptr;
  cudaDriverEntryPointQueryResult found;
  cudaGetDriverEntryPointByVersion(name, &fn, 12000, cudaEnableDefault, &found);
  return reinterpret_cast<Function>(fn);
}

// float32 maps convert to TF32 (round to nearest) while loading; what is stored stays as it is.
inline CUtensorMapDataType map_type(Dtype dtype, bool round_to_tf32) {
  if (dtype == Dtype::bf16) return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  if (dtype == Dtype::f16) return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  return round_to_tf32 ? CU_TENSOR_MAP_DATA_TYPE_TFLOAT32 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
}

inline CUtensorMapSwizzle map_swizzle(int bytes) {
  return bytes == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
         : bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                       : CU_TENSOR_MAP_SWIZZLE_32B;
}

// Drivers up to 13.1 set a bit of the descriptor wrongly for tensors under 128 KiB.
inline void fix_small_tensor(CUtensorMap* map, uint64_t bytes) {
  static const int version = [] {
    int v = 0;
    cudaDriverGetVersion(&v);
    return v;
  }();
  if (version <= 13010 && bytes < 131072)
    reinterpret_cast<uint64_t*>(map)[1] &= ~(uint64_t{1} << 21);
}

// dims, box: `rank` numbers, fastest first; strides: rank - 1, in bytes.
inline cudaError_t encode_tiled(CUtensorMap* map, Dtype dtype, int rank, void* base,
                                const uint64_t* dims, const uint64_t* strides, const uint32_t* box,
                                int swizzle_bytes, bool round_to_tf32 = false) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = driver_function<Encode>("cuTensorMapEncodeTiled");
  if (encode == nullptr) return cudaErrorNotSupported;
  const uint32_t ones[5] = {1, 1, 1, 1, 1};
  const CUresult result =
      encode(map, map_type(dtype, round_to_tf32), rank, base, dims, strides, box, ones,
             CU_TENSOR_MAP_INTERLEAVE_NONE, map_swizzle(swizzle_bytes),
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) return cudaErrorInvalidValue;
  fix_small_tensor(map, strides[rank - 2] * dims[rank - 1]);
  return cudaSuccess;
}

// dims {C, W, H, N}; corners and element strides in {w, h} and dims' order.
inline cudaError_t encode_im2col(CUtensorMap* map, Dtype dtype, void* base, const uint64_t* dims,
                                 const uint64_t* strides, const int* lower, const int* upper,
                                 int channels, int pixels, const uint32_t* element_strides,
                                 int swizzle_bytes, bool round_to_tf32 = false) {
  using Encode = decltype(&cuTensorMapEncodeIm2col);
  static const Encode encode = driver_function<Encode>("cuTensorMapEncodeIm2col");
  if (encode == nullptr) return cudaErrorNotSupported;
  const CUresult result =
      encode(map, map_type(dtype, round_to_tf32), 4, base, dims, strides, lower, upper, channels,
             pixels, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, map_swizzle(swizzle_bytes),
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) return cudaErrorInvalidValue;
  fix_small_tensor(map, strides[2] * dims[3]);
  return cudaSuccess;
}

}  // namespace cnnkernels::sm90
