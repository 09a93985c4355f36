// wgmma from shared memory with fp32 accumulators: fences, operand descriptors, the instruction for
// every (type, N) in use.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "plan/operand.h"

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

// Descriptors (plan::operand_descriptor) of dense rows and of a shifted window.
template <int kRowBytes>
__device__ __forceinline__ uint64_t window_descriptor(uint32_t address, uint32_t group_bytes) {
  return plan::operand_descriptor(address, kRowBytes, group_bytes);
}
template <int kRowBytes>
__device__ __forceinline__ uint64_t swizzled_descriptor(uint32_t address) {
  return window_descriptor<kRowBytes>(address, kRowBytes * 8);
}

// d[64 x kN] (+)= a[64 x K] b[kN x K]^T; K is 32 bytes of T (float: tf32). Of thread t of the
// warpgroup, d[4j + e] is row 16 * (t / 32) + t % 32 / 4 + 8 * (e / 2), column 8j + 2 * (t % 4) + e
// % 2.
template <class T, int kN>
__device__ __forceinline__ void wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, int accumulate);

#include "common/sm90/wgmma_shapes.inc"

}  // namespace cnnkernels::sm90
