#pragma once
#include "emulator.h"

namespace cnnkernels::sm90 {

inline cudaError_t encode_tiled(CUtensorMap* map, Dtype dtype, int rank, void* base,
                                const uint64_t* dims, const uint64_t* strides, const uint32_t* box,
                                int swizzle_bytes, bool round_to_tf32 = false) {
  emulator::TensorMap m{dtype, rank, static_cast<char*>(base)};
  std::copy_n(dims, rank, m.dims), std::copy_n(strides, rank - 1, m.strides);
  std::copy_n(box, rank, m.box);
  m.swizzle = swizzle_bytes, m.round_to_tf32 = round_to_tf32;
  emulator::register_map(map, m);
  return cudaSuccess;
}
inline cudaError_t encode_im2col(CUtensorMap* map, Dtype dtype, void* base, const uint64_t* dims,
                                 const uint64_t* strides, const int* lower, const int* upper,
                                 int channels, int pixels, const uint32_t* element_strides,
                                 int swizzle_bytes, bool round_to_tf32 = false) {
  emulator::TensorMap m{dtype, 4, static_cast<char*>(base)};
  std::copy_n(dims, 4, m.dims), std::copy_n(strides, 3, m.strides);
  std::copy_n(element_strides, 4, m.element_strides);
  std::copy_n(lower, 2, m.lower), std::copy_n(upper, 2, m.upper);
  m.box[0] = channels, m.box[1] = pixels;
  m.swizzle = swizzle_bytes, m.round_to_tf32 = round_to_tf32, m.im2col = true;
  emulator::register_map(map, m);
  return cudaSuccess;
}

}  // namespace cnnkernels::sm90
