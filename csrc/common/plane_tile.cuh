// Tiles of contiguous memory in shared memory, for NCHW kernels: a run of elements is copied by
// 16-byte asynchronous copies to the same address modulo 16, so any start offset works; the ends
// that share their 16 bytes with a neighbour are copied element by element.
#pragma once

#include "common/vec.cuh"

namespace cnnkernels {

// Bytes to reserve for a run of `bytes` at any alignment.
constexpr int tile_reserve(int64_t bytes) { return static_cast<int>((bytes + 15) / 16 * 16 + 16); }

// Where element 0 of a run that starts at `global` lies in the 16-byte aligned `shared`.
template <class T>
__device__ __forceinline__ T* tile_start(char* shared, const T* global) {
  return reinterpret_cast<T*>(shared + (reinterpret_cast<uintptr_t>(global) & 15));
}

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

// Elements before the first 16-byte boundary.
template <class T>
__device__ __forceinline__ int unaligned_head(const T* p, int count) {
  const int head = static_cast<int>((16 - (reinterpret_cast<uintptr_t>(p) & 15)) & 15) /
                   static_cast<int>(sizeof(T));
  return min(head, count);
}

// All kThreads threads start copying `count` elements; complete after copy_async_wait + barrier.
template <int kThreads, class T>
__device__ __forceinline__ const T* tile_load(char* shared, const T* global, int count) {
  constexpr int V = kVecSize<T>;
  T* tile = tile_start(shared, global);
  const int head = unaligned_head(global, count), vectors = (count - head) / V;
  for (int i = threadIdx.x; i < vectors; i += kThreads)
    copy_async_16(tile + head + i * V, global + head + i * V);
  for (int i = threadIdx.x; i < head; i += kThreads) tile[i] = global[i];
  for (int i = head + vectors * V + threadIdx.x; i < count; i += kThreads) tile[i] = global[i];
  return tile;
}

// Writes `count` elements of a tile laid out by tile_start; after a barrier.
template <int kThreads, class T>
__device__ __forceinline__ void tile_store(T* global, const T* tile, int count) {
  constexpr int V = kVecSize<T>;
  const int head = unaligned_head(global, count), vectors = (count - head) / V;
  for (int i = threadIdx.x; i < head; i += kThreads) global[i] = tile[i];
  for (int i = threadIdx.x; i < vectors; i += kThreads)
    reinterpret_cast<uint4*>(global + head)[i] = reinterpret_cast<const uint4*>(tile + head)[i];
  for (int i = head + vectors * V + threadIdx.x; i < count; i += kThreads) global[i] = tile[i];
}

// One warp copies a row of `count` elements: whole aligned 16-byte pieces, also where they reach
// into the row's neighbours, but never outside [first, last) of the tensor.
template <class T>
__device__ __forceinline__ void row_load(char* shared, const T* row, int count, const T* first,
                                         const T* last, int lane) {
  constexpr int V = kVecSize<T>;
  const int shift = static_cast<int>((reinterpret_cast<uintptr_t>(row) & 15) / sizeof(T));
  const T* aligned = row - shift;
  T* tile = reinterpret_cast<T*>(shared);
  for (int i = lane * V; i < count + shift; i += 32 * V) {
    if (aligned + i >= first && aligned + i + V <= last) {
      copy_async_16(tile + i, aligned + i);
    } else {
      for (int e = max(i, shift); e < min(i + V, count + shift); ++e) tile[e] = aligned[e];
    }
  }
}

// One warp writes a row staged by tile_start.
template <class T>
__device__ __forceinline__ void row_store(T* row, const char* shared, int count, int lane) {
  constexpr int V = kVecSize<T>;
  const int shift = static_cast<int>((reinterpret_cast<uintptr_t>(row) & 15) / sizeof(T));
  T* aligned = row - shift;
  const T* tile = reinterpret_cast<const T*>(shared);
  for (int i = lane * V; i < count + shift; i += 32 * V) {
    if (i >= shift && i + V <= count + shift) {
      *reinterpret_cast<uint4*>(aligned + i) = *reinterpret_cast<const uint4*>(tile + i);
    } else {
      for (int e = max(i, shift); e < min(i + V, count + shift); ++e) aligned[e] = tile[e];
    }
  }
}

}  // namespace cnnkernels
