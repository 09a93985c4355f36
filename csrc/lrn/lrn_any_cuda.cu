// LRN, forward and backward, for any window size, constants, layout, alignment and channel count.
// Thread = one pixel and a range of channels, which it walks with the window in a ring in shared
// memory (its own column, so no barriers and no bank conflicts). fp32 sums and raises in fp64,
// which leaves one rounding; 16-bit types use powf.
#include <type_traits>

#include "common/dispatch.cuh"
#include "common/lrn_math.cuh"
#include "lrn/lrn.h"

namespace cnnkernels {
namespace {

constexpr int kMostShared = 96 * 1024;  // of the ring; windows that need more are refused

struct Args {
  const void* x;
  const void* bias;
  const void* dy;
  void* out;
  int64_t images, channels, pixels, piece;  // piece: channels per thread
  int64_t pixel_stride, channel_stride;
  int size;
  double scale, beta, k;
  bool relu;
};

// Walks channels [first - ..., last + ...) of one pixel. A channel's value is final when its window
// is complete, that is `front` channels later; the backward pass then needs t over the mirrored
// window, `back` channels further on.
template <class T, bool kBackward>
__global__ void lrn_any_kernel(const Args a, int64_t total) {
  using Wide = std::conditional_t<sizeof(T) == 4, double, float>;
  extern __shared__ float ring[];  // [rows][threads]: v, and backward also g -> direct, t
  const int64_t id = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (id >= total) return;
  const int64_t pixel = id % a.pixels, rest = id / a.pixels;
  const int64_t pieces = (a.channels + a.piece - 1) / a.piece;
  const int64_t first = rest % pieces * a.piece, n = rest / pieces;
  const int64_t last = min(a.channels, first + a.piece);
  const Wide scale = static_cast<Wide>(a.scale), beta = static_cast<Wide>(a.beta);
  const Wide k = static_cast<Wide>(a.k);
  const int front = plan::lrn_front(a.size), back = plan::lrn_back(a.size);
  const int64_t at = n * a.channels * a.pixels + pixel * a.pixel_stride;
  const T* x = static_cast<const T*>(a.x) + at;
  const T* dy = static_cast<const T*>(a.dy) + at;
  const T* bias = static_cast<const T*>(a.bias);
  T* out = static_cast<T*>(a.out) + at;

  // Ring rows of 2 * size channels; c is kept at row c mod (2 * size).
  const int rows = 2 * a.size;
  auto cell = [&](int kind, int64_t c) -> float& {
    return ring[(kind * rows + (c + rows) % rows) * blockDim.x + threadIdx.x];
  };
  // The window of channel c is [c - front, c + back]; c lies in the windows of [c - back, c +
  // front].
  const int64_t t_first = kBackward ? max(first - back, int64_t{0}) : first;
  const int64_t t_last = kBackward ? min(last + front, a.channels) : last;
  for (int64_t c = max(t_first - front, int64_t{0}); c < t_last + back + (kBackward ? front : 0);
       ++c) {
    if (c < a.channels) {
      float v = to_float(x[c * a.channel_stride]);
      if (bias) v += to_float(bias[c]);
      if (a.relu) v = max_nan(v, 0.f);
      cell(0, c) = v;
    }
    const int64_t middle = c - back;  // its window is complete
    if (middle >= t_first && middle < t_last) {
      Wide sum = 0;
      for (int64_t j = max(middle - front, int64_t{0}); j <= min(middle + back, a.channels - 1);
           ++j)
        sum += Wide{cell(0, j)} * cell(0, j);
      const Wide d = scale * sum + k, v = cell(0, middle), power = pow(d, -beta);
      if (kBackward) {
        const float g = to_float(dy[middle * a.channel_stride]);
        cell(1, middle) = static_cast<float>(g * power);
        cell(2, middle) = static_cast<float>(g * v * (power / d));
      } else {
        out[middle * a.channel_stride] = from_float<T>(static_cast<float>(v * power));
      }
    }
    const int64_t target = middle - front;  // the windows that hold it are complete
    if (kBackward && target >= first && target < last) {
      Wide sum = 0;
      for (int64_t j = max(target - back, int64_t{0}); j <= min(target + front, a.channels - 1);
           ++j)
        sum += cell(2, j);
      const float v = cell(0, target);
      float result = static_cast<float>(-2 * scale * beta * v * sum + cell(1, target));
      if (a.relu && v <= 0.f) result = 0.f;
      out[target * a.channel_stride] = from_float<T>(result);
    }
  }
}

template <bool kBackward>
cudaError_t launch(const LrnParams& p, cudaStream_t stream) {
  return dispatch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    const LrnShape& s = p.shape;
    const bool nhwc = p.layout == Layout::nhwc;
    Args a{p.x,
           p.bias,
           p.dy,
           p.out,
           s.n,
           s.c,
           s.pixels,
           std::max<int64_t>(64, 8 * s.size),
           nhwc ? s.c : 1,
           nhwc ? 1 : s.pixels,
           s.size,
           s.alpha / s.size,
           s.beta,
           s.k,
           s.relu};
    const int64_t row_bytes = int64_t{kBackward ? 3 : 1} * 2 * s.size * sizeof(float);
    int threads = 128;
    while (threads > 1 && threads * row_bytes > kMostShared) threads /= 2;
    const int64_t bytes = threads * row_bytes;
    if (bytes > kMostShared) return cudaErrorInvalidValue;
    auto* kernel = lrn_any_kernel<T, kBackward>;
    const cudaError_t error = allow_shared(kernel, static_cast<int>(bytes));
    if (error != cudaSuccess) return error;
    const int64_t total = s.n * s.pixels * ceil_div(s.c, a.piece);
    if (ceil_div(total, threads) > kMaxThreads) return cudaErrorInvalidValue;
    kernel<<<static_cast<unsigned>(ceil_div(total, threads)), threads, bytes, stream>>>(a, total);
    return cudaGetLastError();
  });
}

}  // namespace

cudaError_t launch_lrn_any(const LrnParams& p, cudaStream_t stream) {
  return launch<false>(p, stream);
}
cudaError_t launch_lrn_backward_any(const LrnParams& p, cudaStream_t stream) {
  return launch<true>(p, stream);
}

}  // namespace cnnkernels
