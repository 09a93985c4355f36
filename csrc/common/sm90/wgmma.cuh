// wgmma from shared memory with fp32 accumulators: fences, operand descriptors, the instruction for
// every (type, N) in use.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace cnnkernels::sm90 {

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// K-major operand, rows of kRowBytes (32, 64 or 128) with the swizzle of that span, dense rows.
template <int kRowBytes>
__device__ __forceinline__ uint64_t swizzled_descriptor(uint32_t address) {
  constexpr uint64_t layout = kRowBytes == 128 ? 1 : kRowBytes == 64 ? 2 : 3;
  return (uint64_t(address & 0x3FFFF) >> 4) | (1ull << 16) | (uint64_t(kRowBytes * 8 / 16) << 32) |
         (layout << 62);
}

// The same with groups of 8 rows `group_bytes` apart (a multiple of 16). The hardware swizzles the
// final address, so `address` may be any row of a buffer aligned to 8 rows: a shifted window.
template <int kRowBytes>
__device__ __forceinline__ uint64_t window_descriptor(uint32_t address, uint32_t group_bytes) {
  constexpr uint64_t layout = kRowBytes == 128 ? 1 : kRowBytes == 64 ? 2 : 3;
  return (uint64_t(address & 0x3FFFF) >> 4) | (1ull << 16) | (uint64_t(group_bytes >> 4) << 32) |
         (layout << 62);
}

// d[64 x kN] (+)= a[64 x K] b[kN x K]^T; K is 32 bytes of T (float: tf32). Of thread t of the
// warpgroup, d[4j + e] is row 16 * (t / 32) + t % 32 / 4 + 8 * (e / 2), column 8j + 2 * (t % 4) + e
// % 2.
template <class T, int kN>
__device__ __forceinline__ void wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, int accumulate);

#include "common/sm90/wgmma_shapes.inc"

}  // namespace cnnkernels::sm90
