#pragma once
#include "common/vec.cuh"
#include "emulator.h"

namespace cnnkernels::sm90 {

inline uint32_t pack(float lo, float hi, __nv_bfloat16) {
  const __nv_bfloat16 pair[2] = {__float2bfloat16_rn(lo), __float2bfloat16_rn(hi)};
  uint32_t word;
  std::memcpy(&word, pair, 4);
  return word;
}
inline uint32_t pack(float lo, float hi, __half) {
  const __half pair[2] = {__float2half_rn(lo), __float2half_rn(hi)};
  uint32_t word;
  std::memcpy(&word, pair, 4);
  return word;
}
inline float2 unpack(uint32_t v, __nv_bfloat16) {
  return {__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u)};
}
inline float2 unpack(uint32_t v, __half) {
  __half2 pair;
  std::memcpy(&pair, &v, 4);
  return __half22float2(pair);
}
inline float max_keep_nan(float a, float b) { return a != a ? a : b != b ? b : max(a, b); }
inline float relu_keep_nan(float v) { return max_keep_nan(v, 0); }
template <class T>
uint32_t max_words(uint32_t a, uint32_t b, T) {
  const float2 x = unpack(a, T{}), y = unpack(b, T{});
  return pack(max_keep_nan(x.x, y.x), max_keep_nan(x.y, y.y), T{});
}
inline uint32_t max_words(uint32_t a, uint32_t b, float) {
  return __float_as_uint(max_keep_nan(__uint_as_float(a), __uint_as_float(b)));
}
inline float round_to_tf32(float v) {
  return v - v != 0 ? v : __uint_as_float((__float_as_uint(v) + 0x1000u) & ~0x1fffu);
}

// Element e of this lane's word of matrix i, transposed.
inline uint8_t* transposed(const emulator::Warp& warp, int i, int e) {
  const int lane = emulator::lane();
  return emulator::shared(warp.address[i * 8 + 2 * (lane % 4) + e], 16) + 2 * (lane / 4);
}
template <bool kFour>
void load_matrices(uint32_t address, uint32_t (&words)[4]) {
  emulator::Warp& warp = emulator::warp();
  warp.address[emulator::lane()] = address;
  emulator::meet_warp();
  for (int i = 0; i < (kFour ? 4 : 2); ++i)
    for (int e = 0; e < 2; ++e)
      std::memcpy(reinterpret_cast<char*>(&words[i]) + 2 * e, transposed(warp, i, e), 2);
  emulator::meet_warp();
}
template <bool kFour>
void store_matrices(uint32_t address, const uint32_t (&words)[4]) {
  emulator::Warp& warp = emulator::warp();
  warp.address[emulator::lane()] = address;
  if (kFour || emulator::lane() < 16) emulator::stored(address, 16);
  emulator::meet_warp();
  for (int i = 0; i < (kFour ? 4 : 2); ++i)
    for (int e = 0; e < 2; ++e)
      std::memcpy(transposed(warp, i, e), reinterpret_cast<const char*>(&words[i]) + 2 * e, 2);
  emulator::meet_warp();
}
inline uint32_t load_word(uint32_t address) {
  uint32_t v;
  std::memcpy(&v, emulator::shared(address, 4), 4);
  return v;
}
template <class... Words>
void store_words(uint32_t address, Words... words) {
  const uint32_t v[] = {words...};
  if (address % sizeof v) emulator::fail("words off their size");
  std::memcpy(emulator::stored(address, sizeof v), v, sizeof v);
}

}  // namespace cnnkernels::sm90
