// Host version of csrc/common/sm90/wgmma.cuh: both operands K-major from shared memory.
#pragma once

#include "common/sm90/words.cuh"
#include "machine.h"

namespace cnnkernels::sm90 {

inline void wgmma_fence() {}
inline void wgmma_commit() {}
template <int kPending>
void wgmma_wait() {}

template <int kRowBytes>
uint64_t swizzled_descriptor(uint32_t address) {
  constexpr uint64_t layout = kRowBytes == 128 ? 1 : kRowBytes == 64 ? 2 : 3;
  return (uint64_t(address & 0x3FFFF) >> 4) | (1ull << 16) | (uint64_t(kRowBytes * 8 / 16) << 32) |
         (layout << 62);
}

// Element (row, byte) of the operand a descriptor names: rows of the swizzle's span, groups of 8
// rows at the stride; the swizzle acts on the final address.
inline const uint8_t* operand_at(uint64_t descriptor, int row, int byte) {
  const int layout = descriptor >> 62;
  const int span = layout == 1 ? 128 : layout == 2 ? 64 : 32;
  const uint32_t start = (descriptor & 0x3fff) << 4;
  const uint32_t stride = (descriptor >> 32 & 0x3fff) << 4;
  const uint32_t address = start + row / 8 * stride + row % 8 * span + byte;
  return machine::shared_at(machine::swizzle(address, span) & ~15u, 16) + address % 16;
}

template <class T>
double operand_value(const uint8_t* at) {
  T v;
  std::memcpy(&v, at, sizeof v);
  if constexpr (sizeof(T) == 4) {
    uint32_t bits;
    std::memcpy(&bits, at, 4);
    bits &= ~0x1fffu;  // the tensor cores drop what tf32 does not have
    std::memcpy(&v, &bits, 4);
    return v;
  } else {
    return static_cast<float>(v);
  }
}

template <class T, int kN>
void wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, int accumulate) {
  constexpr int kDepth = 32 / sizeof(T);
  const int t = threadIdx.x % 128, lane = t % 32;
  double left[2][kDepth];
  for (int half = 0; half < 2; ++half)
    for (int k = 0; k < kDepth; ++k)
      left[half][k] =
          operand_value<T>(operand_at(a, t / 32 * 16 + lane / 4 + half * 8, k * int(sizeof(T))));
  for (int j = 0; j < kN / 8; ++j)
    for (int e = 0; e < 2; ++e) {
      double sum[2] = {0, 0};
      for (int k = 0; k < kDepth; ++k) {
        const double right =
            operand_value<T>(operand_at(b, 8 * j + 2 * (lane % 4) + e, k * int(sizeof(T))));
        sum[0] += left[0][k] * right, sum[1] += left[1][k] * right;
      }
      for (int half = 0; half < 2; ++half) {
        float& out = d[4 * j + 2 * half + e];
        out = static_cast<float>((accumulate ? double(out) : 0.0) + sum[half]);
      }
    }
}

}  // namespace cnnkernels::sm90
