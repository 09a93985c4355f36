// Launches of the stem convolution: which instance, the output's tensor map, the bands of rows.
#include <algorithm>

#include "common/sm90/tensor_map.h"
#include "conv2d/conv2d_stem.h"
#include "conv2d/conv2d_stem_sm90.cuh"

namespace cnnkernels {
namespace {

int sm_count() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

bool is_nhwc(const StemParams& prm) { return prm.x_stride[1] == 1 && prm.x_stride[3] == 3; }

template <class T, int kStride, int kTaps, int kPixels, int kMTiles>
cudaError_t launch(const StemParams& prm, cudaStream_t stream) {
  using G = StemGeometry<kStride, kTaps, kPixels, kMTiles>;
  StemKernelParams k{};
  k.x = prm.x, k.weight = prm.weight, k.bias = prm.bias;
  std::copy_n(prm.x_stride, 4, k.x_stride);
  std::copy_n(prm.weight_stride, 4, k.weight_stride);
  k.h = prm.h, k.w = prm.w, k.k = prm.k, k.r = prm.r, k.s = prm.s, k.p = prm.p, k.q = prm.q;
  k.stride = prm.stride, k.pad_h = prm.pad_h, k.pad_w = prm.pad_w, k.relu = prm.relu;
  k.segments = (prm.q + kPixels - 1) / kPixels;

  // Bands: as tall as possible (each re-reads kTaps - 1 rows) while every multiprocessor has work
  // and the last wave is nearly full; at 4 or fewer waves the number of bands decides, not their
  // height.
  const int sms = sm_count();
  const int64_t columns = int64_t{prm.n} * k.segments;
  double best = 1e30;
  for (int bands = 1; bands <= prm.p; ++bands) {
    const int rows = (prm.p + bands - 1) / bands;
    if ((prm.p + rows - 1) / rows != bands) continue;
    const int64_t waves = (columns * bands + sms - 1) / sms;
    const double cost = static_cast<double>(waves) * (rows + 0.25 * (kTaps - 1) + 1);
    if (cost < best) best = cost, k.band_rows = rows, k.bands = bands;
  }
  k.tiles = static_cast<int>(columns * k.bands);

  CUtensorMap map;
  const uint64_t dims[3] = {static_cast<uint64_t>(prm.k), static_cast<uint64_t>(prm.q),
                            static_cast<uint64_t>(prm.n) * prm.p};
  const uint64_t strides[2] = {prm.k * sizeof(T), prm.k * sizeof(T) * prm.q};
  const uint32_t box[3] = {64, kPixels, 1};
  cudaError_t error = sm90::encode_tiled(&map, prm.dtype, 3, prm.y, dims, strides, box, 128);
  if (error != cudaSuccess) return error;

  auto* kernel = is_nhwc(prm) ? conv2d_stem_kernel<T, kStride, kTaps, kPixels, kMTiles, true>
                              : conv2d_stem_kernel<T, kStride, kTaps, kPixels, kMTiles, false>;
  error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, G::kSharedBytes);
  if (error != cudaSuccess) return error;
  kernel<<<std::min(k.tiles, sms), G::kThreads, G::kSharedBytes, stream>>>(map, k);
  return cudaGetLastError();
}

// Instances by (stride, taps, output columns per row, tiles of 64 output channels).
template <class T>
cudaError_t dispatch(const StemParams& prm, cudaStream_t stream) {
  const int taps = (std::max(prm.r, prm.s) + prm.stride - 1) / prm.stride;
  const bool two = prm.k > 64;
  if (prm.stride == 1 && taps <= 3)  // VGG 3x3/1: memory-bound, one row of 224 per step
    return two ? launch<T, 1, 3, 112, 2>(prm, stream) : launch<T, 1, 3, 224, 1>(prm, stream);
  if (prm.stride == 2 && taps <= 4)  // ResNet and GoogLeNet 7x7/2, ZFNet 7x7/2 (K = 96)
    return two ? launch<T, 2, 4, 112, 2>(prm, stream) : launch<T, 2, 4, 112, 1>(prm, stream);
  return two ? launch<T, 4, 3, 56, 2>(prm, stream)
             : launch<T, 4, 3, 56, 1>(prm, stream);  // AlexNet
}

}  // namespace

const char* stem_why_not(const StemParams& prm) {
  const int taps = prm.stride > 0 ? (std::max(prm.r, prm.s) + prm.stride - 1) / prm.stride : 0;
  if (prm.dtype != Dtype::bf16 && prm.dtype != Dtype::f16) return "stem kernels take fp16 and bf16";
  if (prm.stride != 1 && prm.stride != 2 && prm.stride != 4)
    return "stem kernels have stride 1, 2, 4";
  if (taps > (prm.stride == 2 ? 4 : 3)) return "the filter is larger than the stem kernels' taps";
  if (prm.k % 8 != 0 || prm.k > 128) return "stem kernels have at most 128 output channels, in 8s";
  if (prm.x_stride[3] != 1 && !is_nhwc(prm)) return "the input must be contiguous or channels_last";
  return nullptr;
}

cudaError_t launch_conv2d_stem_sm90(const StemParams& prm, cudaStream_t stream) {
  if (stem_why_not(prm) != nullptr) return cudaErrorInvalidValue;
  if (prm.n == 0) return cudaSuccess;
  return prm.dtype == Dtype::bf16 ? dispatch<__nv_bfloat16>(prm, stream)
                                  : dispatch<__half>(prm, stream);
}

}  // namespace cnnkernels
