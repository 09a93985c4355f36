// A window's position as a bit set, so that one instruction tests several taps.
#pragma once

#include <cstdint>

namespace cnnkernels {

// Bit p + 1 for the position p in the low 5 bits (p < 31); no bit for "no gradient", 255. What
// lies above those 5 bits does not matter. In assembly because the
// compiler would turn the tests of `1 << p` back into one comparison per tap; on bits it does not
// know it moves six at a time into predicates (R2P, whose first usable bit is 1).
__device__ __forceinline__ uint32_t tap_bits(int position) {
  uint32_t bits;
  asm("shf.l.wrap.b32 %0, 0, 2, %1;" : "=r"(bits) : "r"(position));
  return bits;
}
// Keeps a value in its register: the compiler would compute it again at every use.
__device__ __forceinline__ void keep(int& value) { asm volatile("" : "+r"(value)); }
__device__ __forceinline__ bool has_tap(uint32_t bits, int tap) { return bits & (2u << tap); }

}  // namespace cnnkernels
