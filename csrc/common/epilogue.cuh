// From transposed wgmma accumulators (rows = output channels, columns = pixels) to a staged tile of
// [pixel][64 channels] that TMA stores: bias, residual, ReLU, rounding, transpose. The staging rows
// have 128 bytes in the 128-byte swizzle; 32-bit types take two planes of 32 channels.
#pragma once

#include <cstdint>

#include "common/sm90/words.cuh"
#include "common/vec.cuh"

namespace cnnkernels::sm90 {

// 2x2/2 max-pool of a tile of 8 columns x kN / 8 rows: a thread holds two neighbours of every row.
// Of the result, registers 4g and 4g + 1 are column t % 4 of pooled rows 2g and 2g + 1.
template <int kN, int kRegisters>
__device__ __forceinline__ void pool_2x2(const float (&acc)[kN / 2], float (&out)[kRegisters]) {
  constexpr int kPairs = kN / 16;  // of rows
  static_assert(kRegisters == (kPairs + 1) / 2 * 4);
#pragma unroll
  for (int pair = 0; pair < kPairs + kPairs % 2; ++pair)
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // channel, channel + 8
      const int at = min(pair, kPairs - 1) * 8 + half * 2;
      out[pair / 2 * 4 + half * 2 + pair % 2] =
          max_keep_nan(max_keep_nan(acc[at], acc[at + 1]), max_keep_nan(acc[at + 4], acc[at + 5]));
    }
}

// Stages the pixels [kFirst, kFirst + kN) of a warpgroup's accumulators at `stage`. bias0 belongs
// to channel 16 * (thread / 32) + thread % 32 / 4 of the 64, bias1 to the one 8 further. With
// `residual`, `stage` holds the residual in the same layout and is overwritten in place: every warp
// reads and writes its own 16 channels only. kPooled: the accumulators are pool_2x2's.
template <class T, int kN, int kFirst = 0, bool kPooled = false, int kRegisters>
__device__ __forceinline__ void store_transposed(const float (&acc)[kRegisters], float bias0,
                                                 float bias1, bool relu, uint32_t stage, int thread,
                                                 bool residual = false) {
  static_assert(kFirst % 8 == 0 && kN % 8 == 0 && (kFirst + kN) / 2 <= kRegisters);
  const int lane = thread % 32, warp = thread / 32;
  constexpr int kBase = kFirst / 2;
  if constexpr (sizeof(T) == 2) {
    constexpr int kGroups = kN / 8;
    // Which of 8 staged pixels this lane's matrix row is: two pooled rows of 4 come interleaved.
    const int row = kPooled ? (lane & 1) * 4 + (lane >> 1 & 3) : lane & 7;
    const uint32_t address =
        stage + ((lane >> 4) * 8 + row) * 128 + (((warp * 2 + (lane >> 3 & 1)) ^ row) << 4);
#pragma unroll
    for (int j = 0; j < kGroups; j += 2) {  // two groups of 8 pixels x 16 channels
      constexpr bool kOdd = kGroups % 2;
      const bool four = !kOdd || j + 1 < kGroups;
      uint32_t words[4];
      if (residual)
        four ? load_matrices<true>(address + j * 1024, words)
             : load_matrices<false>(address + j * 1024, words);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (j + i / 2 >= kGroups) continue;
        const float bias = i & 1 ? bias1 : bias0;
        float lo = acc[kBase + j * 4 + i * 2] + bias, hi = acc[kBase + j * 4 + i * 2 + 1] + bias;
        if (residual) {
          const float2 z = unpack(words[i], T{});
          lo += z.x, hi += z.y;
        }
        if (relu) lo = relu_keep_nan(lo), hi = relu_keep_nan(hi);
        words[i] = pack(lo, hi, T{});
      }
      four ? store_matrices<true>(address + j * 1024, words)
           : store_matrices<false>(address + j * 1024, words);
    }
  } else {
    const int channel = warp % 2 * 16 + lane / 4;  // in its plane of 32
    const uint32_t plane = stage + warp / 2 * (kN * 128) + channel % 4 * 4;
#pragma unroll
    for (int j = 0; j < kN / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = 8 * j + (kPooled ? lane % 4 + e % 2 * 4 : 2 * (lane % 4) + e % 2);
        const uint32_t address = plane + row * 128 + ((channel / 4 + e / 2 * 2) ^ (row & 7)) * 16;
        float v = acc[kBase + 4 * j + e] + (e / 2 ? bias1 : bias0);
        if (residual) {
          v += __uint_as_float(load_word(address));
        }
        if (relu) v = relu_keep_nan(v);
        store_words(address, __float_as_uint(v));
      }
  }
}

}  // namespace cnnkernels::sm90
