// Host version of csrc/common/sm90/tensor_map.h.
#pragma once

#include <cuda.h>

#include "common/types.h"

namespace cnnkernels::sm90 {

inline cudaError_t encode_tiled(CUtensorMap* map, Dtype dtype, int rank, void* base,
                                const uint64_t* dims, const uint64_t* strides, const uint32_t* box,
                                int swizzle_bytes, bool = false) {
  map->base = static_cast<uint8_t*>(base), map->rank = rank;
  map->element_bytes = dtype == Dtype::f32 ? 4 : 2;
  for (int i = 0; i < rank; ++i) {
    map->dims[i] = dims[i], map->box[i] = box[i];
    if (i + 1 < rank) map->strides[i] = strides[i];
    if (box[i] < 1 || box[i] > 256) return cudaErrorInvalidValue;
    if (i + 1 < rank && strides[i] % 16) return cudaErrorInvalidValue;
  }
  if (swizzle_bytes != 128 || box[0] * map->element_bytes != 128) return cudaErrorInvalidValue;
  return cudaSuccess;
}

}  // namespace cnnkernels::sm90
