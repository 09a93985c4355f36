// A run of a stem's input: kElements neighbours of one row, read from global memory as X and given
// as 32-bit words of the operand type T, zero outside the row. All loads of a row are issued (load)
// before the first is used (finish).
#pragma once

#include <cstdint>

#include "common/sm90/words.cuh"
#include "common/vec.cuh"

namespace cnnkernels {

// What the tensor cores multiply: floats rounded to the nearest tf32.
__device__ __forceinline__ float stem_operand(float v) { return sm90::round_to_tf32(v); }
__device__ __forceinline__ __half stem_operand(__half v) { return v; }
__device__ __forceinline__ __nv_bfloat16 stem_operand(__nv_bfloat16 v) { return v; }

// X = T, 16 bits: elements [offset, offset + kElements) of a row of `limit`. The row may start at
// an odd address, so aligned words are read and shifted later. An end word may reach one element
// past the row, never past its own aligned 4 bytes.
template <class X, class T, int kElements>
struct StemRun {
  static_assert(sizeof(X) == 2 && sizeof(T) == 2 && kElements % 2 == 0);
  using Source = uint16_t;
  static constexpr int kWords = kElements / 2;
  uint32_t raw[kWords + 1];

  __device__ __forceinline__ void load(const uint16_t* row, int offset, int limit, bool inside) {
    const int odd = reinterpret_cast<uintptr_t>(row + offset) >> 1 & 1;
    const auto* aligned = reinterpret_cast<const uint32_t*>(row + offset - odd);
#pragma unroll
    for (int i = 0; i <= kWords; ++i) raw[i] = 0;
    if (!inside) return;
    if (offset >= 0 && offset + 2 * kWords <= limit) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) raw[i] = __ldg(aligned + i);
      if (odd) raw[kWords] = __ldg(aligned + kWords);
    } else {
#pragma unroll
      for (int i = 0; i <= kWords; ++i) {
        const int element = offset - odd + 2 * i;
        if (element >= -1 && element < limit) raw[i] = __ldg(aligned + i);
      }
    }
  }

  __device__ __forceinline__ void finish(const uint16_t* row, int offset, int limit,
                                         uint32_t* words) const {
    const int odd = reinterpret_cast<uintptr_t>(row + offset) >> 1 & 1;
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = __funnelshift_r(raw[i], raw[i + 1], odd * 16);
    if (offset >= 0 && offset + 2 * kWords <= limit) return;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const unsigned element = static_cast<unsigned>(offset + 2 * i);
      if (element >= static_cast<unsigned>(limit)) words[i] &= 0xffff0000u;
      if (element + 1 >= static_cast<unsigned>(limit)) words[i] &= 0x0000ffffu;
    }
  }
};

// X = float: T = float rounds to tf32, a 16-bit T to T.
template <class T, int kElements>
struct StemRun<float, T, kElements> {
  using Source = float;
  float raw[kElements];

  __device__ __forceinline__ void load(const float* row, int offset, int limit, bool inside) {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      const bool valid = inside && static_cast<unsigned>(offset + i) < static_cast<unsigned>(limit);
      raw[i] = valid ? __ldg(row + offset + i) : 0.f;
    }
  }

  __device__ __forceinline__ void finish(const float*, int, int, uint32_t* words) const {
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int i = 0; i < kElements; ++i) words[i] = __float_as_uint(stem_operand(raw[i]));
    } else {
#pragma unroll
      for (int i = 0; i < kElements / 2; ++i)
        words[i] = sm90::pack(raw[2 * i], raw[2 * i + 1], T{});
    }
  }
};

// X = uint8_t: aligned words of four, shifted by whole bytes; 0 … 255 are exact in both 16-bit
// types.
template <class T, int kElements>
struct StemRun<uint8_t, T, kElements> {
  static_assert(sizeof(T) == 2 && kElements % 2 == 0);
  using Source = uint8_t;
  static constexpr int kRaw = (kElements + 3 + 3) / 4;  // up to 3 bytes before the first
  uint32_t raw[kRaw];

  __device__ __forceinline__ void load(const uint8_t* row, int offset, int limit, bool inside) {
    const int shift = reinterpret_cast<uintptr_t>(row + offset) & 3;
    const auto* aligned = reinterpret_cast<const uint32_t*>(row + offset - shift);
#pragma unroll
    for (int i = 0; i < kRaw; ++i) {
      const int element = offset - shift + 4 * i;  // of the word's four, one must be wanted
      const bool wanted = element > -4 && element < limit && element < offset + kElements;
      raw[i] = inside && wanted ? __ldg(aligned + i) : 0;
    }
  }

  __device__ __forceinline__ void finish(const uint8_t* row, int offset, int limit,
                                         uint32_t* words) const {
    const int shift = reinterpret_cast<uintptr_t>(row + offset) & 3;
#pragma unroll
    for (int i = 0; i < kElements; i += 2) {
      const uint32_t next = i / 4 + 1 < kRaw ? raw[i / 4 + 1] : 0;
      const uint32_t four = __funnelshift_r(raw[i / 4], next, shift * 8);
      float v[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const bool valid = static_cast<unsigned>(offset + i + e) < static_cast<unsigned>(limit);
        // The bits of 2^23 + byte, so that no (slow) integer conversion is needed.
        const uint32_t bits = __byte_perm(four, 0x4B000000u, 0x7440 | (i % 4 + e));
        v[e] = valid ? __uint_as_float(bits) - 8388608.f : 0.f;
      }
      words[i / 2] = sm90::pack(v[0], v[1], T{});
    }
  }
};

}  // namespace cnnkernels
