// Max-pool forward, channels_last, windows 3x3/2, 2x2/2 and 3x3/1 unrolled, optional ReLU, offsets.
// Thread = one 16-byte channel vector of TH x TW outputs; grid is flat over (n, oh, ow, vector),
// the vector fastest. No shared memory: neighbours' overlapping reads hit L1/L2. Rows are reduced
// over kw first, then folded into each output row. Values stay packed (words.cuh).
#include "common/dispatch.cuh"
#include "common/fast_div.h"
#include "common/words.cuh"
#include "max_pool2d/max_pool2d.h"

namespace cnnkernels {
namespace {

constexpr int kThreads = 256;

struct Args {
  const void* x;
  void* y;
  uint8_t* offsets;
  int h, w, vectors, oh, ow, pad_h, pad_w;  // vectors: 16-byte vectors per pixel
  FastDiv by_vectors, by_tiles_w, by_tiles_h;
  uint32_t total;
  bool relu;
};

// Torch's rule where a window holds NaN: the last one's position. Rewrites only those elements.
template <class T, int K>
__device__ __noinline__ void fix_nan_positions(const T* image, int h0, int w0, int height,
                                               int width, int pixel, uint32_t* position) {
  for (int e = 0; e < kVecSize<T>; ++e)
    for (int kh = 0; kh < K; ++kh)
      for (int kw = 0; kw < K; ++kw) {
        const int h = h0 + kh, w = w0 + kw;
        if (h < 0 || h >= height || w < 0 || w >= width) continue;
        const float v = to_float(image[(int64_t{h} * width + w) * pixel + e]);
        if (v == v) continue;
        const int shift = e % Words<T>::kPerWord * 16;
        uint32_t& word = position[e / Words<T>::kPerWord];
        word = Words<T>::kPerWord == 1
                   ? kh * K + kw
                   : (word & ~(0xffffu << shift)) | static_cast<uint32_t>(kh * K + kw) << shift;
      }
}

template <class T, int K, int S, int TH, int TW, bool kOffsets>
__global__ void __launch_bounds__(kThreads) max_pool2d_nhwc_kernel(const Args a) {
  using W = Words<T>;
  using V = Chunk<T, kVecSize<T>>;
  constexpr int kRows = (TH - 1) * S + K, kCols = (TW - 1) * S + K;
  uint32_t vector = blockIdx.x * kThreads + threadIdx.x;
  if (vector >= a.total) return;
  uint32_t tile_w = a.by_vectors.split(vector);
  uint32_t tile_h = a.by_tiles_w.split(tile_w);
  const int64_t n = a.by_tiles_h.split(tile_h);
  const int oh0 = tile_h * TH, ow0 = tile_w * TW, h0 = oh0 * S - a.pad_h, w0 = ow0 * S - a.pad_w;
  const int pixel = a.vectors * kVecSize<T>;  // elements per pixel
  const T* image = static_cast<const T*>(a.x) + n * a.h * a.w * pixel + vector * kVecSize<T>;
  const T* corner = image + (int64_t{h0} * a.w + w0) * pixel;

  // The first valid tap is where the scan starts, so windows of only -inf get torch's position.
  int first_kw[TW];
#pragma unroll
  for (int j = 0; j < TW; ++j) first_kw[j] = max(0, -(w0 + j * S));

  uint32_t best[TH][TW][4], position[TH][TW][4];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const bool row_ok = static_cast<unsigned>(h0 + r) < static_cast<unsigned>(a.h);
    V v[kCols];
#pragma unroll
    for (int c = 0; c < kCols; ++c) {
      v[c] = V::filled(W::kNegInf);
      if (row_ok && static_cast<unsigned>(w0 + c) < static_cast<unsigned>(a.w))
        v[c].load(corner + (r * a.w + c) * pixel);
    }
#pragma unroll
    for (int j = 0; j < TW; ++j) {
      uint32_t row_best[4], row_kw[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        row_best[k] = v[j * S].w[k];
        row_kw[k] = first_kw[j] * W::kPosition;
      }
#pragma unroll
      for (int kw = 1; kw < K; ++kw)
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          if (kOffsets) {
            scan_step<T>(row_best[k], row_kw[k], v[j * S + kw].w[k], kw * W::kPosition);
          } else {
            row_best[k] = W::maximum(row_best[k], v[j * S + kw].w[k]);
          }
        }
#pragma unroll
      for (int i = 0; i < TH; ++i) {
        const int kh = r - i * S;
        if (kh < 0 || kh >= K) continue;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          if (kh == 0) {
            best[i][j][k] = row_best[k];
            position[i][j][k] = row_kw[k] + max(0, -(h0 + i * S)) * K * W::kPosition;
          } else if (kOffsets) {
            scan_step<T>(best[i][j][k], position[i][j][k], row_best[k],
                         row_kw[k] + kh * K * W::kPosition);
          } else {
            best[i][j][k] = W::maximum(best[i][j][k], row_best[k]);
          }
        }
      }
    }
  }

#pragma unroll
  for (int i = 0; i < TH; ++i)
#pragma unroll
    for (int j = 0; j < TW; ++j) {
      if (oh0 + i >= a.oh || ow0 + j >= a.ow) continue;
      uint32_t* m = best[i][j];
      uint32_t* p = position[i][j];
      const int64_t out = ((n * a.oh + oh0 + i) * a.ow + ow0 + j) * a.vectors + vector;
      if (kOffsets && (W::has_nan(m[0]) | W::has_nan(m[1]) | W::has_nan(m[2]) | W::has_nan(m[3]))) {
        uint32_t fixed[4] = {p[0], p[1], p[2], p[3]};
        fix_nan_positions<T, K>(image, h0 + i * S, w0 + j * S, a.h, a.w, pixel, fixed);
#pragma unroll
        for (int k = 0; k < 4; ++k) p[k] = fixed[k];
      }
      if (a.relu) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          m[k] = W::maximum(m[k], 0u);
          p[k] |= W::equal_mask(m[k], 0u) & (kNoGradient * W::kPosition);
        }
      }
      *(static_cast<uint4*>(a.y) + out) = make_uint4(m[0], m[1], m[2], m[3]);
      if (kOffsets) {
        if constexpr (W::kPerWord == 2) {
          reinterpret_cast<uint2*>(a.offsets)[out] =
              make_uint2(__byte_perm(p[0], p[1], 0x6420), __byte_perm(p[2], p[3], 0x6420));
        } else {
          reinterpret_cast<uint32_t*>(a.offsets)[out] =
              __byte_perm(__byte_perm(p[0], p[1], 0x0040), __byte_perm(p[2], p[3], 0x0040), 0x5410);
        }
      }
    }
}

template <class T, int K, int S, int TH, int TW, bool kOffsets>
cudaError_t launch(const MaxPoolParams& p, cudaStream_t stream) {
  const PoolShape& s = p.shape;
  Args a{p.x,    p.y,  static_cast<uint8_t*>(p.offsets),
         s.h,    s.w,  static_cast<int>(s.c / kVecSize<T>),
         s.oh,   s.ow, s.pad_h,
         s.pad_w};
  const int64_t tiles_w = ceil_div(s.ow, TW), tiles_h = ceil_div(s.oh, TH);
  a.by_vectors = FastDiv(a.vectors), a.by_tiles_w = FastDiv(tiles_w),
  a.by_tiles_h = FastDiv(tiles_h);
  a.relu = p.relu;
  const int64_t per_image = tiles_w * tiles_h * a.vectors;
  return for_slices(s.n, per_image, [&](int64_t first, int64_t count) {
    a.x = static_cast<const T*>(p.x) + first * s.c * s.h * s.w;
    a.y = static_cast<T*>(p.y) + first * s.c * s.oh * s.ow;
    if (p.offsets) a.offsets = static_cast<uint8_t*>(p.offsets) + first * s.c * s.oh * s.ow;
    a.total = static_cast<uint32_t>(count * per_image);
    max_pool2d_nhwc_kernel<T, K, S, TH, TW, kOffsets>
        <<<static_cast<unsigned>(ceil_div(a.total, kThreads)), kThreads, 0, stream>>>(a);
    return cudaGetLastError();
  });
}

}  // namespace

// Tiles, measured on an H100: stride 2 gains nothing from more than one output per thread; 3x3/1
// wants 4x1 (1x1 takes 23 % longer), with offsets in fp32 2x2.
cudaError_t launch_max_pool2d_nhwc(const MaxPoolParams& p, cudaStream_t stream) {
  return dispatch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    constexpr bool k32 = sizeof(T) == 4;
    if (p.shape.kernel_h == 2)
      return p.offsets ? launch<T, 2, 2, 1, 1, true>(p, stream)
                       : launch<T, 2, 2, 1, 1, false>(p, stream);
    if (p.shape.stride_h == 2)
      return p.offsets ? launch<T, 3, 2, 1, 1, true>(p, stream)
                       : launch<T, 3, 2, 1, 1, false>(p, stream);
    return p.offsets ? launch<T, 3, 1, k32 ? 2 : 4, k32 ? 2 : 1, true>(p, stream)
                     : launch<T, 3, 1, 4, 1, false>(p, stream);
  });
}

}  // namespace cnnkernels
