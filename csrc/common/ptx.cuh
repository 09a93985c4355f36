// The instructions of the memory-bound kernels that CUDA has no intrinsic for, one thin wrapper
// each. tests/cuda/host/common/ptx.cuh says in C++ what each of them does.
#pragma once

#include <cstdint>

namespace cnnkernels {

// --- maxima: NaN where either is, element by element ---------------------------------------------

__device__ __forceinline__ float max_nan(float a, float b) {
  float r;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
__device__ __forceinline__ uint32_t max_nan_bf16x2(uint32_t a, uint32_t b) {
  uint32_t r;
  asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
__device__ __forceinline__ uint32_t max_nan_f16x2(uint32_t a, uint32_t b) {
  uint32_t r;
  asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}

// --- two rounded floats in a word, `low` in the lower half ---------------------------------------

__device__ __forceinline__ uint32_t pack_bf16x2(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
__device__ __forceinline__ uint32_t pack_f16x2(float low, float high) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

// --- special functions: relative error at most 2^-22 (lg2: absolute for results near 0) ----------

__device__ __forceinline__ float approx_rsqrt(float x) {
  float r;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
__device__ __forceinline__ float approx_sqrt(float x) {
  float r;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
__device__ __forceinline__ float approx_log2(float x) {
  float r;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
__device__ __forceinline__ float approx_exp2(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

// --- a window's position and the taps it may be --------------------------------------------------

// sum += g where byte e of `bytes` is `value`: one LOP3 extracts, compares and sets a predicate.
__device__ __forceinline__ void add_where_byte(float& sum, float g, uint32_t bytes, int e,
                                               uint32_t value) {
  asm("{ .reg .pred other; lop3.or.b32 _|other, %2, %3, %4, 0x28, 0; @!other add.f32 %0, %0, %1; }"
      : "+f"(sum)
      : "f"(g), "r"(bytes), "r"(value << 8 * e), "r"(0xffu << 8 * e));
}
// Bit p + 1 for the position p in the low 5 bits (p < 31); no bit for "no gradient", 255. What lies
// above those 5 bits does not matter. In assembly because the compiler would turn the tests of
// `1 << p` back into one comparison per tap; on bits it does not know it moves six at a time into
// predicates (R2P, whose first usable bit is 1).
__device__ __forceinline__ uint32_t tap_bits(int position) {
  uint32_t bits;
  asm("shf.l.wrap.b32 %0, 0, 2, %1;" : "=r"(bits) : "r"(position));
  return bits;
}
__device__ __forceinline__ bool has_tap(uint32_t bits, int tap) { return bits & (2u << tap); }
// Keeps a value in its register: the compiler would compute it again at every use.
__device__ __forceinline__ void keep(int& value) { asm volatile("" : "+r"(value)); }

// --- asynchronous copies -------------------------------------------------------------------------

__device__ __forceinline__ void copy_async_16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;"); }
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {  // then __syncthreads()
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace cnnkernels
