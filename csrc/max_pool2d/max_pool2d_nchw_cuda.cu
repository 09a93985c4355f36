// Max-pool forward, NCHW, windows 3x3/2, 2x2/2 and 3x3/1, optional ReLU, offsets.
// Block = a few whole planes, or a band of output rows of one plane: contiguous memory, so one flat
// copy brings it into shared memory, at any alignment; outputs are staged there too and flushed in
// 16-byte stores (odd planes, say 55 x 55, allow no vectors otherwise).
// Item = one word of adjacent outputs x a strip of rows, see common/pool_walk.cuh.
#include "common/dispatch.cuh"
#include "common/fast_div.h"
#include "common/plane_tile.cuh"
#include "common/pool_walk.cuh"
#include "max_pool2d/max_pool2d.h"

namespace cnnkernels {
namespace {

constexpr int kThreads = 128;
constexpr int kMargin = 16;  // bytes before and after the tile that may be read: multiple of 16

struct Args {
  const void* x;
  void* y;
  uint8_t* offsets;
  int64_t planes;
  int h, w, oh, ow, pad_h, pad_w;
  plan::PlaneTile tile;
  int strip;  // output rows of an item
  FastDiv by_bands, by_words, by_strips;
  int y_at, offsets_at;  // where the staged outputs begin in shared memory
  bool relu;
};

template <class T, int K, int S, bool kOffsets>
__global__ void __launch_bounds__(kThreads, 10) max_pool2d_nchw_kernel(const Args a) {
  using W = Words<T>;
  using Raw = typename W::Raw;
  constexpr int P = W::kPerWord;
  extern __shared__ __align__(16) char shared[];

  // The tile: planes plane0 .. + planes, output rows oh0 .. oh1, input rows h_lo .. h_hi.
  uint32_t band = blockIdx.x;
  const int64_t plane0 = int64_t{a.by_bands.split(band)} * a.tile.planes;
  const int planes = static_cast<int>(min(int64_t{a.tile.planes}, a.planes - plane0));
  const bool banded = a.tile.bands > 1;
  const int oh0 = band * a.tile.rows, oh1 = min(a.oh, oh0 + a.tile.rows), rows = oh1 - oh0;
  const int h_lo = banded ? max(0, oh0 * S - a.pad_h) : 0;
  const int h_hi = banded ? min(a.h, (oh1 - 1) * S - a.pad_h + K) : a.h;
  const T* x = static_cast<const T*>(a.x) + (plane0 * a.h + h_lo) * a.w;
  const int64_t out = (plane0 * a.oh + oh0) * a.ow;
  T* y = static_cast<T*>(a.y) + out;
  const T* x_first = static_cast<const T*>(a.x);
  const Raw* in =
      reinterpret_cast<const Raw*>(tile_load(shared + kMargin, x, planes * (h_hi - h_lo) * a.w,
                                             x_first, x_first + a.planes * a.h * a.w, kThreads));
  T* y_tile = tile_start(shared + a.y_at, y);
  Raw* y_raw = reinterpret_cast<Raw*>(y_tile);
  uint8_t* offset_tile = kOffsets ? tile_start(shared + a.offsets_at, a.offsets + out) : nullptr;
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();

  // ReLU: a maximum of 0 sends no gradient.
  int floor = a.relu ? 0 : W::kNegInf, no_gradient = a.relu ? kNoGradient * W::kPosition : 0;
  keep(floor), keep(no_gradient);
  const int items = planes * a.by_strips.divisor * a.by_words.divisor;
  for (int item = threadIdx.x; item < items; item += kThreads) {
    uint32_t word = item;
    uint32_t strip = a.by_words.split(word);
    const int plane = a.by_strips.split(strip);
    const int ow = word * P, r0 = strip * a.strip, at = (plane * rows + r0) * a.ow + ow;
    PoolStrip<T> p;
    p.plane = in + (plane * a.h - h_lo) * a.w;
    p.h_hi = h_hi, p.w = a.w;
    p.h0 = (oh0 + r0) * S - a.pad_h, p.w0 = ow * S - a.pad_w;
    p.rows = min(a.strip, rows - r0), p.columns = min(P, a.ow - ow);
    p.y = y_raw + at, p.offsets = offset_tile + at, p.ow = a.ow;
    p.floor = floor, p.no_gradient = no_gradient;
    pool_walk<K, S, kOffsets>(p);
  }
  __syncthreads();
  tile_store(y, y_tile, planes * rows * a.ow, kThreads);
  if (kOffsets) tile_store(a.offsets + out, offset_tile, planes * rows * a.ow, kThreads);
}

template <class T, int K, int S, bool kOffsets>
cudaError_t launch(const MaxPoolParams& p, cudaStream_t stream) {
  const PoolShape& s = p.shape;
  Args a{p.x,     p.y,    static_cast<uint8_t*>(p.offsets), s.n * s.c, s.h, s.w, s.oh, s.ow,
         s.pad_h, s.pad_w};
  const int64_t bytes = sizeof(T);
  a.tile = plan::plane_tile(s.h * s.w * bytes, s.oh, S * s.w * bytes, a.planes);
  a.by_bands = FastDiv(a.tile.bands);
  const int64_t words = ceil_div(s.ow, Words<T>::kPerWord);
  a.strip = plan::strip_rows(a.tile.rows, a.tile.planes * words, kThreads, K - S, 1);
  a.by_words = FastDiv(words), a.by_strips = FastDiv(ceil_div(a.tile.rows, a.strip));
  a.relu = p.relu;
  const int64_t in_rows = a.tile.bands > 1 ? (a.tile.rows - 1) * S + K : s.h;
  const int64_t outputs = int64_t{a.tile.planes} * a.tile.rows * s.ow;
  a.y_at = 2 * kMargin + tile_reserve(a.tile.planes * in_rows * s.w * bytes);
  a.offsets_at = a.y_at + tile_reserve(outputs * bytes);
  const int shared = a.offsets_at + (kOffsets ? tile_reserve(outputs) : 0);
  auto* kernel = max_pool2d_nchw_kernel<T, K, S, kOffsets>;
  const cudaError_t error = allow_shared(kernel, shared);
  if (error != cudaSuccess) return error;
  const int64_t blocks = ceil_div(a.planes, a.tile.planes) * a.tile.bands;
  if (blocks > kMaxThreads) return cudaErrorInvalidValue;
  kernel<<<static_cast<unsigned>(blocks), kThreads, shared, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_max_pool2d_nchw(const MaxPoolParams& p, cudaStream_t stream) {
  return dispatch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    if (p.shape.kernel_h == 2)
      return p.offsets ? launch<T, 2, 2, true>(p, stream) : launch<T, 2, 2, false>(p, stream);
    if (p.shape.stride_h == 2)
      return p.offsets ? launch<T, 3, 2, true>(p, stream) : launch<T, 3, 2, false>(p, stream);
    return p.offsets ? launch<T, 3, 1, true>(p, stream) : launch<T, 3, 1, false>(p, stream);
  });
}

}  // namespace cnnkernels
