// Max-pool forward, NCHW, windows 3x3/2, 2x2/2 and 3x3/1, optional ReLU, offsets.
// Block = a few whole planes, or a band of output rows of one plane: contiguous memory, so one flat
// copy brings it into shared memory, at any alignment; outputs are staged there too and flushed in
// 16-byte stores (odd planes, say 55 x 55, allow no vectors otherwise).
// Item = one word of adjacent outputs (2 of 16 bit, packed) x TH rows. Addresses are clamped to the
// input and a clamped tap carries the label of the tap it really reads, so padding costs no tests.
#include "common/dispatch.cuh"
#include "common/fast_div.h"
#include "common/plane_tile.cuh"
#include "common/words.cuh"
#include "max_pool2d/max_pool2d.h"

namespace cnnkernels {
namespace {

constexpr int kThreads = 128;

struct Args {
  const void* x;
  void* y;
  uint8_t* offsets;
  int64_t planes;
  int h, w, oh, ow, pad_h, pad_w;
  plan::PlaneTile tile;
  FastDiv by_bands, by_words, by_strips;
  int y_at, offsets_at;  // where the staged outputs begin in shared memory
  bool relu;
};

template <class T, int K, int S, int TH, bool kOffsets>
__global__ void __launch_bounds__(kThreads, S == 1 ? 9 : 10) max_pool2d_nchw_kernel(const Args a) {
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
  const Raw* in = reinterpret_cast<const Raw*>(tile_load(
      shared, x, planes * (h_hi - h_lo) * a.w, x_first, x_first + a.planes * a.h * a.w, kThreads));
  T* y_tile = tile_start(shared + a.y_at, y);
  Raw* y_raw = reinterpret_cast<Raw*>(y_tile);
  uint8_t* offset_tile = kOffsets ? tile_start(shared + a.offsets_at, a.offsets + out) : nullptr;
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();

  const int items = planes * a.by_strips.divisor * a.by_words.divisor;
  for (int item = threadIdx.x; item < items; item += kThreads) {
    uint32_t word = item;
    uint32_t strip = a.by_words.split(word);
    const int plane = a.by_strips.split(strip);
    const int ow = word * P, r0 = strip * TH;
    const int h0 = (oh0 + r0) * S - a.pad_h, w0 = ow * S - a.pad_w;
    const Raw* p = in + (plane * a.h - h_lo) * a.w;

    // Columns read, and the taps they stand for in each of the word's windows.
    constexpr int kCols = (P - 1) * S + K;
    int column[kCols];
    uint32_t label[K];
#pragma unroll
    for (int i = 0; i < kCols; ++i) column[i] = min(max(w0 + i, 0), a.w - 1);
#pragma unroll
    for (int kw = 0; kw < K; ++kw) {
      label[kw] = column[kw] - w0;
      if (P == 2) label[kw] |= (column[(P - 1) * S + kw] - w0 - S) << 16;
    }

    uint32_t best[TH], position[TH];
#pragma unroll
    for (int r = 0; r < (TH - 1) * S + K; ++r) {
      const int h = min(max(h0 + r, h_lo), h_hi - 1);
      const Raw* row = p + h * a.w;
      uint32_t v[kCols], row_best, row_kw;
#pragma unroll
      for (int i = 0; i < kCols; ++i) v[i] = row[column[i]];
#pragma unroll
      for (int kw = 0; kw < K; ++kw) {
        const uint32_t pair = P == 2 ? __byte_perm(v[kw], v[(P - 1) * S + kw], 0x5410) : v[kw];
        if (kw == 0) {
          row_best = pair, row_kw = label[0];
        } else if (kOffsets) {
          scan_step<T>(row_best, row_kw, pair, label[kw]);
        } else {
          row_best = W::maximum(row_best, pair);
        }
      }
#pragma unroll
      for (int i = 0; i < TH; ++i) {
        const int kh = r - i * S;
        if (kh < 0 || kh >= K) continue;
        const uint32_t at = row_kw + static_cast<uint32_t>(h - h0 - i * S) * (K * W::kPosition);
        if (kh == 0) {
          best[i] = row_best, position[i] = at;
        } else if (kOffsets) {
          scan_step<T>(best[i], position[i], row_best, at);
        } else {
          best[i] = W::maximum(best[i], row_best);
        }
      }
    }

#pragma unroll
    for (int i = 0; i < TH; ++i) {
      if (r0 + i >= rows) continue;
      const int count = min(P, a.ow - ow);
      if (kOffsets && W::has_nan(best[i])) {  // rare: the last NaN's position
#pragma unroll 1
        for (int tap = 0; tap < count * K * K; ++tap) {
          const int e = tap / (K * K), kh = tap % (K * K) / K, kw = tap % K;
          const int h = h0 + i * S + kh, w = w0 + e * S + kw;
          if (h < h_lo || h >= h_hi || w < 0 || w >= a.w) continue;
          if (!W::has_nan(p[h * a.w + w])) continue;
          const uint32_t mask = P == 2 ? 0xffffu << (16 * e) : ~0u;
          position[i] = (position[i] & ~mask) | (kh * K + kw) << (16 * e);
        }
      }
      if (a.relu) {
        best[i] = W::maximum(best[i], 0u);
        position[i] |= W::equal_mask(best[i], 0u) & (kNoGradient * W::kPosition);
      }
      const int at = (plane * rows + r0 + i) * a.ow + ow;
      y_raw[at] = static_cast<Raw>(best[i]);
      if (kOffsets) offset_tile[at] = static_cast<uint8_t>(position[i]);
      if (count > 1) {
        y_raw[at + 1] = static_cast<Raw>(best[i] >> 16);
        if (kOffsets) offset_tile[at + 1] = static_cast<uint8_t>(position[i] >> 16);
      }
    }
  }
  __syncthreads();
  tile_store(y, y_tile, planes * rows * a.ow, kThreads);
  if (kOffsets) tile_store(a.offsets + out, offset_tile, planes * rows * a.ow, kThreads);
}

template <class T, int K, int S, int TH, bool kOffsets>
cudaError_t launch(const MaxPoolParams& p, cudaStream_t stream) {
  const PoolShape& s = p.shape;
  Args a{p.x,     p.y,    static_cast<uint8_t*>(p.offsets), s.n * s.c, s.h, s.w, s.oh, s.ow,
         s.pad_h, s.pad_w};
  const int64_t bytes = sizeof(T);
  a.tile = plan::plane_tile(s.h * s.w * bytes, s.oh, S * s.w * bytes, a.planes);
  a.by_bands = FastDiv(a.tile.bands);
  a.by_words = FastDiv(ceil_div(s.ow, Words<T>::kPerWord));
  a.by_strips = FastDiv(ceil_div(a.tile.rows, TH));
  a.relu = p.relu;
  const int64_t in_rows = a.tile.bands > 1 ? (a.tile.rows - 1) * S + K : s.h;
  const int64_t outputs = int64_t{a.tile.planes} * a.tile.rows * s.ow;
  a.y_at = tile_reserve(a.tile.planes * in_rows * s.w * bytes);
  a.offsets_at = a.y_at + tile_reserve(outputs * bytes);
  const int shared = a.offsets_at + (kOffsets ? tile_reserve(outputs) : 0);
  auto* kernel = max_pool2d_nchw_kernel<T, K, S, TH, kOffsets>;
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
      return p.offsets ? launch<T, 2, 2, 4, true>(p, stream) : launch<T, 2, 2, 4, false>(p, stream);
    if (p.shape.stride_h == 2)
      return p.offsets ? launch<T, 3, 2, 4, true>(p, stream) : launch<T, 3, 2, 4, false>(p, stream);
    return p.offsets ? launch<T, 3, 1, 8, true>(p, stream) : launch<T, 3, 1, 8, false>(p, stream);
  });
}

}  // namespace cnnkernels
