// LRN forward and backward, NCHW, window of 5, optional bias and ReLU in front; the backward pass
// needs x and dy alone. Block = a range of pixels of one image and (nearly always) all channels,
// which it walks as common/lrn_walk.cuh says; results leave in 16-byte stores.
#include "common/dispatch.cuh"
#include "common/lrn_walk.cuh"
#include "lrn/lrn.h"

namespace cnnkernels {
namespace {

template <class Step, class T, bool kBias>
__global__ void __launch_bounds__(LrnWalk<T>::kThreads, Step::kResident)
    lrn_nchw_kernel(const LrnWalkArgs a, const LrnConstants lrn) {
  extern __shared__ __align__(16) char shared[];
  int64_t block = blockIdx.x;
  const int c0 = static_cast<int>(block % a.tile.channel_tiles) * a.tile.channels;
  block /= a.tile.channel_tiles;
  const int64_t p0 = block % a.tile.pixel_tiles * a.tile.pixels, n = block / a.tile.pixel_tiles;
  const int pixels = static_cast<int>(min(int64_t{a.tile.pixels}, a.plane - p0));
  const int c1 = min(static_cast<int>(a.channels), c0 + a.tile.channels);
  T* out = static_cast<T*>(a.out) + n * a.channels * a.plane + p0;
  lrn_walk<Step, LrnWalk<T>, kBias>(
      a, lrn, shared, n, p0, pixels, c0, c1, out, [&](int, T* row, const T* tile, int lane) {
        Run<T>(row, pixels).template store<LrnWalk<T>::kPieces>(row, tile, lane, 32);
      });
}

template <class Step>
cudaError_t launch(const LrnParams& p, cudaStream_t stream) {
  return dispatch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    using Walk = LrnWalk<T>;
    LrnWalkArgs a{{p.x, p.dy}, p.bias, p.out, p.shape.n, p.shape.c, p.shape.pixels};
    a.tile = plan::lrn_tile(p.shape, Walk::kRow, Walk::kStage, Step::kLag, Step::kResident);
    a.pitch = Walk::pitch(a.plane);
    auto* kernel = p.bias ? lrn_nchw_kernel<Step, T, true> : lrn_nchw_kernel<Step, T, false>;
    const int bytes = Walk::shared_bytes(Step::kStreams, a, Step::kLag);
    const cudaError_t error = allow_shared(kernel, bytes);
    if (error != cudaSuccess) return error;
    const int64_t blocks = a.images * a.tile.pixel_tiles * a.tile.channel_tiles;
    if (blocks > kMaxThreads) return cudaErrorInvalidValue;
    kernel<<<static_cast<unsigned>(blocks), Walk::kThreads, bytes, stream>>>(a,
                                                                             LrnConstants(p.shape));
    return cudaGetLastError();
  });
}

}  // namespace

cudaError_t launch_lrn_nchw(const LrnParams& p, cudaStream_t stream) {
  return launch<LrnForwardStep>(p, stream);
}
cudaError_t launch_lrn_backward_nchw(const LrnParams& p, cudaStream_t stream) {
  return launch<LrnBackwardStep>(p, stream);
}

}  // namespace cnnkernels
