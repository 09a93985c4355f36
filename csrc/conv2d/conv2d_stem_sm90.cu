// Stem convolutions on Hopper: arguments, and the instances that an H100 has run: 16-bit types, no
// conversion, no pool. By (stride, taps, output columns per row, tiles of 64 output channels).
#include "conv2d/conv2d_stem_launch.cuh"

namespace cnnkernels {
namespace {

template <class T, int kStride, int kTaps, int kPixels, int kMTiles>
cudaError_t launch(const StemParams& prm, cudaStream_t stream) {
  using G = StemGeometry<T, kStride, kTaps, kPixels, kMTiles, false>;
  return stem_is_nhwc(prm) ? launch_stem<G, StemReadsSame<true>>(prm, stream)
                           : launch_stem<G, StemReadsSame<false>>(prm, stream);
}

template <class T>
cudaError_t dispatch(const StemParams& prm, cudaStream_t stream) {
  const bool two = prm.k > 64;
  if (prm.stride == 1)  // VGG 3x3/1: memory-bound, one row of 224 per step
    return two ? launch<T, 1, 3, 112, 2>(prm, stream) : launch<T, 1, 3, 224, 1>(prm, stream);
  if (prm.stride == 2)  // ResNet and GoogLeNet 7x7/2, ZFNet 7x7/2 (K = 96)
    return two ? launch<T, 2, 4, 112, 2>(prm, stream) : launch<T, 2, 4, 112, 1>(prm, stream);
  return two ? launch<T, 4, 3, 56, 2>(prm, stream)
             : launch<T, 4, 3, 56, 1>(prm, stream);  // AlexNet
}

}  // namespace

const char* stem_params_why_not(const StemParams& prm) {
  if (prm.x_stride[3] != 1 && !stem_is_nhwc(prm))
    return "the input must be contiguous or channels_last";
  return plan::stem_why_not(prm);
}

cudaError_t launch_conv2d_stem_sm90(const StemParams& prm, cudaStream_t stream) {
  if (stem_params_why_not(prm) != nullptr) return cudaErrorInvalidValue;
  if (prm.n == 0) return cudaSuccess;
  if (!prm.verified()) return launch_conv2d_stem_any_sm90(prm, stream);
  return prm.dtype == Dtype::bf16 ? dispatch<__nv_bfloat16>(prm, stream)
                                  : dispatch<__half>(prm, stream);
}

}  // namespace cnnkernels
