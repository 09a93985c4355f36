// Stem convolutions on Hopper that read any input type in any layout: TF32, float32 and uint8 input
// converted to fp16 or bf16, and the 3x3/2 max-pool behind them. A block keeps the weights of 64
// output channels: all of 11x11/4's 96 in TF32 would not fit.
#include <type_traits>

#include "conv2d/conv2d_stem_launch.cuh"

namespace cnnkernels {
namespace {

template <class T, bool kPool>
cudaError_t dispatch(const StemParams& prm, cudaStream_t stream) {
  if (prm.stride == 4)
    return launch_stem<StemGeometry<T, 4, 3, 56, 1, kPool>, StemReadsAny>(prm, stream);
  if (prm.stride == 2)
    return launch_stem<StemGeometry<T, 2, 4, 112, 1, kPool>, StemReadsAny>(prm, stream);
  if constexpr (!kPool)
    return launch_stem<StemGeometry<T, 1, 3, 224, 1, false>, StemReadsAny>(prm, stream);
  return cudaErrorInvalidValue;
}

template <class T>
cudaError_t dispatch(const StemParams& prm, cudaStream_t stream) {
  return prm.pool ? dispatch<T, true>(prm, stream) : dispatch<T, false>(prm, stream);
}

}  // namespace

cudaError_t launch_conv2d_stem_any_sm90(const StemParams& prm, cudaStream_t stream) {
  if (prm.dtype == Dtype::bf16) return dispatch<__nv_bfloat16>(prm, stream);
  if (prm.dtype == Dtype::f16) return dispatch<__half>(prm, stream);
  return dispatch<float>(prm, stream);
}

}  // namespace cnnkernels
