// Runs of contiguous memory in shared memory, for NCHW kernels: a run of elements is copied by
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

// Elements before the first 16-byte boundary.
template <class T>
__device__ __forceinline__ int unaligned_head(const T* p, int count) {
  const int head = static_cast<int>((16 - (reinterpret_cast<uintptr_t>(p) & 15)) & 15) /
                   static_cast<int>(sizeof(T));
  return min(head, count);
}

// A run's place between 16-byte boundaries, the same for every run with its address modulo 16; and
// the copies of such a run from and to a tile, which has that address modulo 16, too. Each of
// `workers` threads does its share; kMost > 0: at most so many pieces each.
template <class T>
struct Run {
  static constexpr int V = kVecSize<T>;
  int count, shift;  // elements; from the boundary before the run to its start

  __device__ __forceinline__ Run(const T* run, int count)
      : count(count),
        shift(static_cast<int>((reinterpret_cast<uintptr_t>(run) & 15) / sizeof(T))) {}

  // Whether the boundaries around the run lie in its tensor [first, last).
  __device__ __forceinline__ bool inside(const T* run, const T* first, const T* last) const {
    return run - shift >= first && run + count + V <= last;
  }

  // Starts copying whole aligned pieces, also where they reach into the run's neighbours (single
  // elements would cost a round trip to memory each). Complete after copy_async_wait + barrier.
  template <int kMost = 0>
  __device__ __forceinline__ void load(T* tile, const T* run, int worker, int workers) const {
    const T* from = run - shift;
    T* to = tile - shift;
    if constexpr (kMost > 0) {
#pragma unroll
      for (int j = 0; j < kMost; ++j) {
        const int i = (worker + j * workers) * V;
        if (i < count + shift) copy_async_16(to + i, from + i);
      }
    } else {
      for (int i = worker * V; i < count + shift; i += workers * V) copy_async_16(to + i, from + i);
    }
  }

  // The same for a run at the tensor's ends: never outside it.
  __device__ __forceinline__ void load_at_end(T* tile, const T* run, const T* first, const T* last,
                                              int worker, int workers) const {
#pragma unroll 1
    for (int i = worker * V - shift; i < count; i += workers * V) {
      if (run + i >= first && run + i + V <= last) {
        copy_async_16(tile + i, run + i);
      } else {
#pragma unroll 1
        for (int e = max(i, 0); e < min(i + V, count); ++e) tile[e] = run[e];
      }
    }
  }

  // Writes the run; after a barrier. At least V workers.
  template <int kMost = 0>
  __device__ __forceinline__ void store(T* run, const T* tile, int worker, int workers) const {
    const int head = min(count, shift == 0 ? 0 : V - shift);
    const int vectors = static_cast<int>(static_cast<unsigned>(count - head) / V);
    const int tail = head + vectors * V;
    auto* to = reinterpret_cast<uint4*>(run + head);
    const auto* from = reinterpret_cast<const uint4*>(tile + head);
    if constexpr (kMost > 0) {
#pragma unroll
      for (int j = 0; j < kMost; ++j)
        if (worker + j * workers < vectors) to[worker + j * workers] = from[worker + j * workers];
    } else {
      for (int i = worker; i < vectors; i += workers) to[i] = from[i];
    }
    if (worker < head) run[worker] = tile[worker];
    if (tail + worker < count) run[tail + worker] = tile[tail + worker];
  }
};

// All threads start copying `count` elements of a tensor [first, last); returns where they lie.
template <class T>
__device__ __forceinline__ T* tile_load(char* shared, const T* run, int count, const T* first,
                                        const T* last, int threads) {
  T* tile = tile_start(shared, const_cast<T*>(run));
  const Run<T> r(run, count);
  if (r.inside(run, first, last)) {
    r.load(tile, run, threadIdx.x, threads);
  } else {
    r.load_at_end(tile, run, first, last, threadIdx.x, threads);
  }
  return tile;
}

// All threads write `count` elements of a tile laid out by tile_start; after a barrier.
template <class T>
__device__ __forceinline__ void tile_store(T* run, const T* tile, int count, int threads) {
  Run<T>(run, count).store(run, tile, threadIdx.x, threads);
}

}  // namespace cnnkernels
