#pragma once
#include <cmath>

#include "emulator.h"
#include "plan/operand.h"

namespace cnnkernels::sm90 {

inline void wgmma_fence() { emulator::meet_warp(); }
inline void wgmma_commit() {
  emulator::meet_warp();
  emulator::products().commit();
}
template <int kPending>
void wgmma_wait() {
  emulator::products().wait(kPending);
  emulator::meet_warp();
}
template <int kRowBytes>
uint64_t window_descriptor(uint32_t address, uint32_t group_bytes) {
  return plan::operand_descriptor(address, kRowBytes, group_bytes);
}
template <int kRowBytes>
uint64_t swizzled_descriptor(uint32_t address) {
  return window_descriptor<kRowBytes>(address, kRowBytes * 8);
}

inline float element(const uint8_t* p, __nv_bfloat16) {
  uint16_t v;
  std::memcpy(&v, p, 2);
  return __uint_as_float(unsigned{v} << 16);
}
inline float element(const uint8_t* p, __half h) {
  std::memcpy(&h, p, 2);
  return __half2float(h);
}
inline float element(const uint8_t* p, float) {  // TF32: the last 13 bits are not looked at
  uint32_t v;
  std::memcpy(&v, p, 4);
  return __uint_as_float(v & ~0x1fffu);
}
// Row i of a K-major operand: 32 bytes; NaN where ordinary stores have not been fenced (halo tiles
// read beyond their box for pixels that are thrown away).
template <class T>
void operand_row(float* out, uint64_t descriptor, int i) {
  const uint32_t start = (descriptor & 0x3fff) << 4, group = (descriptor >> 32 & 0x3fff) << 4;
  const int span = 256 >> (descriptor >> 62);
  for (int half = 0; half < 2; ++half) {
    const uint32_t address =
        emulator::swizzled(start + i / 8 * group + i % 8 * span + half * 16, span);
    const uint8_t* p = emulator::shared(address, 16);
    const bool fenced = emulator::fenced(emulator::block(), address);
    for (int k = 0; k < 16; k += sizeof(T)) *out++ = fenced ? element(p + k, T{}) : NAN;
  }
}
template <class T, int kN>
void wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, int accumulate) {
  float* const acc = d;
  emulator::products().open.push_back([=] {
    constexpr int kK = 32 / sizeof(T);
    const int t = emulator::thread() % 128, row = t / 32 * 16 + t % 32 / 4;
    float rows[2][kK], column[kK];
    operand_row<T>(rows[0], a, row), operand_row<T>(rows[1], a, row + 8);
    for (int j = 0; j < kN / 4; ++j) {  // column 8 (j / 2) + 2 (t % 4) + j % 2
      operand_row<T>(column, b, j / 2 * 8 + 2 * (t % 4) + j % 2);
      for (int half = 0; half < 2; ++half) {
        float& out = acc[j / 2 * 4 + half * 2 + j % 2];
        float sum = accumulate ? out : 0;
        for (int k = 0; k < kK; ++k) sum += rows[half][k] * column[k];
        out = sum;
      }
    }
  });
}

}  // namespace cnnkernels::sm90
