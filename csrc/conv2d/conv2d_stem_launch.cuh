// One launch of a stem instance: parameters, the output's tensor map, shared memory, grid.
#pragma once

#include <algorithm>

#include "conv2d/conv2d_maps.h"
#include "conv2d/conv2d_stem.h"
#include "conv2d/conv2d_stem_sm90.cuh"

namespace cnnkernels {

inline bool stem_is_nhwc(const StemParams& prm) {
  return prm.x_stride[1] == 1 && prm.x_stride[3] == 3;
}

inline int stem_sm_count() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

template <class G, class Reads>
cudaError_t launch_stem(const StemParams& prm, cudaStream_t stream) {
  using T = typename G::T;
  const int sms = stem_sm_count();
  StemKernelParams k{};
  static_cast<plan::StemTiling&>(k) = plan::stem_tiling(prm, G::kShape, sms);
  k.x = prm.x, k.weight = prm.weight, k.bias = prm.bias;
  std::copy_n(prm.x_stride, 4, k.x_stride);
  std::copy_n(prm.weight_stride, 4, k.weight_stride);
  k.h = prm.h, k.w = prm.w, k.k = prm.k, k.r = prm.r, k.s = prm.s;
  k.pad_h = prm.pad_h, k.pad_w = prm.pad_w, k.relu = prm.relu;
  k.input = prm.input, k.nhwc = stem_is_nhwc(prm);

  CUtensorMap map;
  const uint64_t width = prm.out_q(), pixel_bytes = prm.k * sizeof(T);
  const uint64_t dims[3] = {static_cast<uint64_t>(prm.k), width,
                            static_cast<uint64_t>(prm.n) * prm.out_p()};
  const uint64_t strides[2] = {pixel_bytes, pixel_bytes * width};
  const uint32_t box[3] = {128 / sizeof(T), static_cast<uint32_t>(k.columns), 1};
  const cudaError_t error = sm90::encode_tiled(&map, prm.dtype, 3, prm.y, dims, strides, box, 128);
  if (error != cudaSuccess) return error;
  return launch_kernel<conv2d_stem_kernel<G, Reads>>(
      {plan::stem_grid(k, sms), G::kShape.shared_bytes(), 1, false, G::kThreads}, stream, map, k);
}

}  // namespace cnnkernels
