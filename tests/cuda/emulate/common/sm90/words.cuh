// Host versions of csrc/common/sm90/words.cuh.
#pragma once

#include <algorithm>
#include <cmath>

#include "machine.h"

namespace cnnkernels::sm90 {

template <class T>
uint32_t pack_pair(T lo, T hi) {
  uint16_t a, b;
  std::memcpy(&a, &lo, 2), std::memcpy(&b, &hi, 2);
  return a | uint32_t{b} << 16;
}
template <class T>
std::pair<T, T> unpack_pair(uint32_t v) {
  const uint16_t a = v & 0xffff, b = v >> 16;
  T lo, hi;
  std::memcpy(&lo, &a, 2), std::memcpy(&hi, &b, 2);
  return {lo, hi};
}
inline uint32_t pack(float lo, float hi, __nv_bfloat16) {
  return pack_pair(__float2bfloat16_rn(lo), __float2bfloat16_rn(hi));
}
inline uint32_t pack(float lo, float hi, __half) {
  return pack_pair(__float2half_rn(lo), __float2half_rn(hi));
}
inline float2 unpack(uint32_t v, __nv_bfloat16) {
  const auto [lo, hi] = unpack_pair<__nv_bfloat16>(v);
  return {__bfloat162float(lo), __bfloat162float(hi)};
}
inline float2 unpack(uint32_t v, __half) {
  const auto [lo, hi] = unpack_pair<__half>(v);
  return {__half2float(lo), __half2float(hi)};
}
inline float max_keep_nan(float a, float b) {
  return std::isnan(a) || std::isnan(b) ? NAN : std::max(a, b);
}
inline float relu_keep_nan(float v) { return max_keep_nan(v, 0.f); }
template <class T>
uint32_t max_words(uint32_t a, uint32_t b, T) {
  if constexpr (sizeof(T) == 4) {
    return __float_as_uint(max_keep_nan(__uint_as_float(a), __uint_as_float(b)));
  } else {
    const float2 x = unpack(a, T{}), y = unpack(b, T{});
    return pack(max_keep_nan(x.x, y.x), max_keep_nan(x.y, y.y), T{});
  }
}
inline float round_to_tf32(float v) {
  if (!std::isfinite(v)) return v;
  return __uint_as_float((__float_as_uint(v) + 0x1000u) & ~0x1fffu);
}
inline uint32_t load_word(uint32_t address) {
  uint32_t v;
  std::memcpy(&v, machine::shared_at(address, 4), 4);
  return v;
}
template <class... Words>
void store_words(uint32_t address, Words... words) {
  const uint32_t v[] = {words...};
  std::memcpy(machine::shared_at(address, sizeof v), v, sizeof v);
}

// stmatrix .trans: lane l gives the address of row l % 8 of matrix l / 8; word m of lane l holds
// elements 2 (l % 4) and 2 (l % 4) + 1 of column l / 4 of matrix m.
template <bool kFour>
void store_matrices(uint32_t address, const uint32_t (&words)[4]) {
  machine::Warp& w = machine::warp();
  const int lane = machine::lane();
  w.address[lane] = address;
  std::memcpy(w.words[lane], words, 16);
  __syncwarp();
  if (lane < (kFour ? 32 : 16)) {
    uint8_t* row = machine::shared_at(address, 16);
    const int m = lane / 8, r = lane % 8;
    for (int c = 0; c < 8; ++c) {
      const uint32_t word = w.words[c * 4 + r / 2][m];
      const uint16_t v = r % 2 ? word >> 16 : word & 0xffff;
      std::memcpy(row + 2 * c, &v, 2);
    }
  }
  __syncwarp();
}
template <bool kFour>
void load_matrices(uint32_t, uint32_t (&)[4]) {
  machine::fail("ldmatrix is not emulated");
}

}  // namespace cnnkernels::sm90
