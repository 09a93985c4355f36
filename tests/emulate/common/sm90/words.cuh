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

// What the lanes of every warp give to ldmatrix and stmatrix.
struct WarpMatrices {
  uint32_t address[32], words[32][4];
};
inline WarpMatrices& warp_matrices() {
  static WarpMatrices warps[16][emulator::kThreads / 32];
  return warps[emulator::block().rank][emulator::thread() / 32];
}
// Element e of this lane's word of matrix i, transposed.
inline uint8_t* transposed(const WarpMatrices& warp, int i, int e) {
  const int lane = emulator::thread() % 32;
  return emulator::shared(warp.address[i * 8 + 2 * (lane % 4) + e], 16) + 2 * (lane / 4);
}
template <bool kFour>
void load_matrices(uint32_t address, uint32_t (&words)[4]) {
  WarpMatrices& warp = warp_matrices();
  warp.address[emulator::thread() % 32] = address;
  emulator::meet_warp();
  for (int i = 0; i < (kFour ? 4 : 2); ++i)
    for (int e = 0; e < 2; ++e)
      std::memcpy(reinterpret_cast<char*>(&words[i]) + 2 * e, transposed(warp, i, e), 2);
  emulator::meet_warp();
}
template <bool kFour>
void store_matrices(uint32_t address, const uint32_t (&words)[4]) {
  WarpMatrices& warp = warp_matrices();
  warp.address[emulator::thread() % 32] = address;
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
inline void store_words(uint32_t address, uint32_t v) {
  std::memcpy(emulator::shared(address, 4), &v, 4);
}

}  // namespace cnnkernels::sm90
