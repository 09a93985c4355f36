// Tiles of contiguous memory in shared memory, for NCHW kernels: a run of elements is copied by
// 16-byte asynchronous copies to the same address modulo 16, so any start offset works.
#pragma once

#include "common/ptx.cuh"
#include "common/vec.cuh"

namespace cnnkernels {

// Bytes to reserve for a run of `bytes` at any alignment.
constexpr int tile_reserve(int64_t bytes) { return static_cast<int>((bytes + 15) / 16 * 16 + 16); }

// Where element 0 of a run that starts at `global` lies in the 16-byte aligned `shared`.
template <class T>
__device__ __forceinline__ T* tile_start(char* shared, const T* global) {
  return reinterpret_cast<T*>(shared + (reinterpret_cast<uintptr_t>(global) & 15));
}

// The same for row r of rows `step` bytes apart, from the low bits of row 0's address.
template <class T>
__device__ __forceinline__ T* row_start(char* shared, uint32_t address, int r, uint32_t step) {
  return reinterpret_cast<T*>(shared + ((address + r * step) & 15));
}

// Elements before the first 16-byte boundary.
template <class T>
__device__ __forceinline__ int unaligned_head(const T* p, int count) {
  const int head = static_cast<int>((16 - (reinterpret_cast<uintptr_t>(p) & 15)) & 15) /
                   static_cast<int>(sizeof(T));
  return min(head, count);
}

// All kThreads threads start copying `count` elements of a tensor [first, last): whole aligned
// 16-byte pieces, also where they reach into the run's neighbours (single elements would cost a
// round trip to memory each), but never outside the tensor. Complete after copy_async_wait +
// barrier.
template <int kThreads, class T>
__device__ __forceinline__ const T* tile_load(char* shared, const T* run, int count, const T* first,
                                              const T* last) {
  constexpr int V = kVecSize<T>;
  T* tile = tile_start(shared, run);
  const int shift = static_cast<int>(tile - reinterpret_cast<T*>(shared));
  const T* aligned = run - shift;
  T* to = reinterpret_cast<T*>(shared);
  if (aligned >= first && run + count + V <= last) {
    const int pieces = (count + shift + V - 1) / V;
    for (int i = threadIdx.x; i < pieces; i += kThreads) copy_async_16(to + i * V, aligned + i * V);
    return tile;
  }
#pragma unroll 1
  for (int i = threadIdx.x * V; i < count + shift; i += kThreads * V) {  // the tensor's own ends
    if (aligned + i >= first && aligned + i + V <= last) {
      copy_async_16(to + i, aligned + i);
    } else {
#pragma unroll 1
      for (int e = max(i, shift); e < min(i + V, count + shift); ++e) to[e] = aligned[e];
    }
  }
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

// One warp copies a row of `count` elements in the same way.
template <class T>
__device__ __forceinline__ void row_load(char* shared, const T* row, int count, const T* first,
                                         const T* last, int lane) {
  constexpr int V = kVecSize<T>;
  const int shift = static_cast<int>((reinterpret_cast<uintptr_t>(row) & 15) / sizeof(T));
  const T* aligned = row - shift;
  T* tile = reinterpret_cast<T*>(shared);
  if (aligned >= first && row + count + V <= last) {
    for (int i = lane * V; i < count + shift; i += 32 * V) copy_async_16(tile + i, aligned + i);
    return;
  }
#pragma unroll 1
  for (int i = lane * V; i < count + shift; i += 32 * V) {  // the tensor's own ends
    if (aligned + i >= first && aligned + i + V <= last) {
      copy_async_16(tile + i, aligned + i);
    } else {
#pragma unroll 1
      for (int e = max(i, shift); e < min(i + V, count + shift); ++e) tile[e] = aligned[e];
    }
  }
}

// One warp fills a row of `bytes`, a multiple of 16, with zeros.
__device__ __forceinline__ void row_clear(char* shared, int bytes, int lane) {
  for (int i = lane * 16; i < bytes; i += 32 * 16)
    *reinterpret_cast<uint4*>(shared + i) = make_uint4(0u, 0u, 0u, 0u);
}

// One warp writes a row staged by tile_start.
template <class T>
__device__ __forceinline__ void row_store(T* row, const char* shared, int count, int lane) {
  constexpr int V = kVecSize<T>;
  const T* tile = reinterpret_cast<const T*>(shared + (reinterpret_cast<uintptr_t>(row) & 15));
  const int head = unaligned_head(row, count), vectors = (count - head) / V;
  const int tail = head + vectors * V;
  for (int i = lane; i < vectors; i += 32)
    reinterpret_cast<uint4*>(row + head)[i] = reinterpret_cast<const uint4*>(tile + head)[i];
  if (lane < head) row[lane] = tile[lane];
  if (tail + lane < count) row[tail + lane] = tile[tail + lane];
}

}  // namespace cnnkernels
