// Max-pool of a plane in shared memory, windows 3x3/2, 2x2/2 and 3x3/1: a thread owns one word of
// adjacent outputs (2 of 16 bit, packed) and walks down the input, scans each row once and keeps
// the results that the next window shares. A row or column before the input is the first one in it,
// under its own label; one beyond it is the last row, or -inf. Up to 4 elements before and after
// the rows are read.
#pragma once

#include "common/words.cuh"

namespace cnnkernels {

template <class T>
struct PoolStrip {
  using Raw = typename Words<T>::Raw;
  const Raw* plane;      // input row 0, column 0; the windows' rows are there
  int h_hi, w;           // rows and columns
  int h0, w0;            // of the first window, >= -1
  int rows, columns;     // of windows; columns: at most a word
  Raw* y;                // first output
  uint8_t* offsets;      // its offset, or nullptr
  int ow;                // outputs per row
  uint32_t floor;        // a word of the least result: -inf, or 0 with ReLU
  uint32_t no_gradient;  // a word of offsets where the result is the floor, added by OR
};

template <int K, int S, bool kOffsets, class T>
__device__ __forceinline__ void pool_walk(const PoolStrip<T>& p) {
  using W = Words<T>;
  using Raw = typename W::Raw;
  constexpr int P = W::kPerWord;
  const Raw* row = p.plane + min(max(p.h0, 0), p.h_hi - 1) * p.w + p.w0;
  Raw* y = p.y;
  uint8_t* offsets = p.offsets;

  // What the columns before and beyond the input are read as.
  const bool left = p.w0 < 0;
  int valid[K], fill[K];  // bits of the words of tap kw
#pragma unroll
  for (int kw = 0; kw < K; ++kw) {
    valid[kw] = ~0;
#pragma unroll
    for (int e = 0; e < P; ++e)
      if (p.w0 + e * S + kw >= p.w) valid[kw] &= P == 2 ? ~(0xffff << (16 * e)) : 0;
    fill[kw] = W::kNegInf & ~valid[kw];
    keep(valid[kw]), keep(fill[kw]);
  }
  const uint32_t first_kw = left ? 1u : 0u;

  // The maximum over kw in row h of the input and its kw; moves on to the next row.
  auto scan_row = [&](uint32_t& best, uint32_t& kw_of_best, int h) {
    constexpr int kColumns = (P - 1) * S + K;
    uint32_t v[kColumns];
#pragma unroll
    for (int i = 0; i < kColumns; ++i) v[i] = row[i];
    if (left) v[0] = v[1];
#pragma unroll
    for (int kw = 0; kw < K; ++kw) {
      uint32_t word = P == 2 ? __byte_perm(v[kw], v[(P - 1) * S + kw], 0x5410) : v[kw];
      if (kw == 0) {
        best = word, kw_of_best = first_kw;
        continue;
      }
      word = (word & valid[kw]) | fill[kw];
      if (kOffsets) {
        scan_step<T>(best, kw_of_best, word, kw * W::kPosition);
      } else {
        best = W::maximum(best, word);
      }
    }
    if (h >= 0 && h + 1 < p.h_hi) row += p.w;
  };

  uint32_t values[K], kws[K], any_nan = W::kNegInf;  // of the window's rows; of all results
  int h = p.h0;
#pragma unroll
  for (int k = 0; k < K - S; ++k) {
    scan_row(values[k], kws[k], h + k);
    if (k == 0 && h < 0) kws[0] += K * W::kPosition;
  }
#pragma unroll(S == 1 ? 3 : 1)
  for (int r = 0; r < p.rows; ++r, h += S) {
#pragma unroll
    for (int k = K - S; k < K; ++k) {
      scan_row(values[k], kws[k], h + k);
      if (k == 0 && h < 0) kws[0] += K * W::kPosition;
    }
    uint32_t best = values[0], position = kws[0];
#pragma unroll
    for (int k = 1; k < K; ++k) {
      if (kOffsets) {
        scan_step<T>(best, position, values[k], kws[k] + k * K * W::kPosition);
      } else {
        best = W::maximum(best, values[k]);
      }
    }
#pragma unroll
    for (int k = 0; k < K - S; ++k) values[k] = values[k + S], kws[k] = kws[k + S];

    best = W::maximum(best, p.floor);
    y[0] = static_cast<Raw>(best);
    if (p.columns > 1) y[1] = static_cast<Raw>(best >> 16);
    y += p.ow;
    if (kOffsets) {
      position |= W::equal_mask(best, p.floor) & p.no_gradient;
      any_nan = W::maximum(any_nan, best);
      offsets[0] = static_cast<uint8_t>(position);
      if (p.columns > 1) offsets[1] = static_cast<uint8_t>(position >> 16);
      offsets += p.ow;
    }
  }

  if (kOffsets && W::has_nan(any_nan)) {  // rare: the last NaN of a window is its maximum
#pragma unroll 1
    for (int tap = 0; tap < p.rows * p.columns * K * K; ++tap) {
      const int r = tap / (K * K) / p.columns, e = tap / (K * K) % p.columns;
      const int kh = tap % (K * K) / K, kw = tap % K;
      const int in_h = p.h0 + r * S + kh, in_w = p.w0 + e * S + kw;
      if (in_h < 0 || in_h >= p.h_hi || in_w < 0 || in_w >= p.w) continue;
      if (W::has_nan(p.plane[in_h * p.w + in_w])) p.offsets[r * p.ow + e] = kh * K + kw;
    }
  }
}

}  // namespace cnnkernels
