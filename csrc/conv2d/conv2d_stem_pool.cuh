// A row of a convolution, pooled along its columns in registers: windows of 3 columns at a distance
// of 2. A thread's accumulators hold columns 2c and 2c + 1 of every fourth window c; the third
// comes from the neighbouring lane. Bias, ReLU and rounding come first: all keep the order of
// values, so the maximum is that of the rounded outputs.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/sm90/words.cuh"

namespace cnnkernels {

template <class T, int kPixels>
struct StemPooledRow {
  static constexpr int kGroups = kPixels / 8;  // of 8 columns, 4 pooled ones
  static constexpr int kPair = sizeof(T) / 2;  // words of a channel and the one 8 further
  static constexpr int kWords = kGroups * kPair;
  static constexpr uint32_t kAbsent = std::is_same_v<T, float>    ? 0xff800000u  // -inf
                                      : std::is_same_v<T, __half> ? 0xfc00fc00u
                                                                  : 0xff80ff80u;
  uint32_t v[kWords];  // group j: pooled column 4j + lane % 4

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kWords; ++i) v[i] = kAbsent;
  }
  __device__ __forceinline__ void take_max(const StemPooledRow& other) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) v[i] = sm90::max_words(v[i], other.v[i], T{});
  }

  // Between the warpgroups: word i of all 128 threads side by side.
  __device__ __forceinline__ void hand_over(uint32_t address, int thread) const {
#pragma unroll
    for (int i = 0; i < kWords; ++i) sm90::store_words(address + (i * 128 + thread) * 4, v[i]);
  }
  __device__ __forceinline__ void take_max_of_handed(uint32_t address, int thread) {
#pragma unroll
    for (int i = 0; i < kWords; ++i)
      v[i] = sm90::max_words(v[i], sm90::load_word(address + (i * 128 + thread) * 4), T{});
  }

  // From the accumulators of a row (wgmma's layout; columns from `limit` on do not exist). kLeft:
  // window c is columns 2c - 1, 2c, 2c + 1, otherwise 2c, 2c + 1, 2c + 2.
  template <bool kLeft>
  __device__ __forceinline__ void pool(const float (&acc)[kPixels / 2], float bias0, float bias1,
                                       bool relu, int limit, int lane) {
    const int source = (lane & ~3) | ((lane + (kLeft ? 3 : 1)) & 3);
    const bool wraps = lane % 4 == (kLeft ? 0 : 3);  // the neighbour belongs to the next group
    uint32_t carried[kPair];
#pragma unroll
    for (int i = 0; i < kPair; ++i) carried[i] = kAbsent;
#pragma unroll
    for (int step = 0; step < kGroups; ++step) {
      const int j = kLeft ? step : kGroups - 1 - step;
      uint32_t column[2][kPair];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float low = acc[4 * j + e] + bias0, high = acc[4 * j + 2 + e] + bias1;
        if (relu) low = sm90::relu_keep_nan(low), high = sm90::relu_keep_nan(high);
        if constexpr (kPair == 1)
          column[e][0] = sm90::pack(low, high, T{});
        else
          column[e][0] = __float_as_uint(low), column[e][1] = __float_as_uint(high);
        if (8 * j + 2 * (lane % 4) + e >= limit)
#pragma unroll
          for (int i = 0; i < kPair; ++i) column[e][i] = kAbsent;
      }
#pragma unroll
      for (int i = 0; i < kPair; ++i) {
        const uint32_t got = __shfl_sync(0xffffffffu, column[kLeft ? 1 : 0][i], source);
        const uint32_t neighbour = wraps ? carried[i] : got;
        carried[i] = got;
        v[j * kPair + i] =
            sm90::max_words(sm90::max_words(column[0][i], column[1][i], T{}), neighbour, T{});
      }
    }
  }

  // Stages the pooled columns as [column][64 channels] rows of 128 bytes (32-bit types: two halves
  // of 32 channels, each kStagePixels rows) in the 128-byte swizzle.
  template <int kStagePixels>
  __device__ __forceinline__ void stage(uint32_t stage, int thread) const {
    const int lane = thread % 32, warp = thread / 32;
    if constexpr (kPair == 1) {
      // Two groups give words of two columns, 4 apart, of one channel; transposed by stmatrix.
      const int row = (lane & 1) * 4 + (lane >> 1 & 3);
      const uint32_t address =
          stage + ((lane >> 4) * 8 + row) * 128 + (((warp * 2 + (lane >> 3 & 1)) ^ row) << 4);
#pragma unroll
      for (int j = 0; j < kGroups; j += 4) {
        uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int at = j + 2 * half;
          if (at >= kGroups) continue;
          const uint32_t next = at + 1 < kGroups ? v[at + 1 < kGroups ? at + 1 : at] : 0;
          words[2 * half] = __byte_perm(v[at], next, 0x5410);
          words[2 * half + 1] = __byte_perm(v[at], next, 0x7632);
        }
        if (j + 2 < kGroups)
          sm90::store_matrices<true>(address + j * 512, words);
        else
          sm90::store_matrices<false>(address + j * 512, words);
      }
    } else {
      const int channel = warp % 2 * 16 + lane / 4;  // in its half of 32
      const uint32_t half = stage + warp / 2 * (kStagePixels * 128) + channel % 4 * 4;
#pragma unroll
      for (int j = 0; j < kGroups; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int row = 4 * j + lane % 4;
          sm90::store_words(half + row * 128 + (((channel / 4 + i * 2) ^ (row & 7)) << 4),
                            v[2 * j + i]);
        }
    }
  }
};

}  // namespace cnnkernels
