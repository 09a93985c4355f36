// Runs an sm_90a kernel on the host: one OS thread per CUDA thread, one block at a time. Shared
// memory, barriers, warp shuffles, wgmma (descriptors, swizzle, fragment layout) and TMA stores
// behave as the PTX manual says; stores read shared memory as late as they may. What is not
// modelled: memory ordering between the proxies, and speed.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#undef __device__
#undef __global__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#undef __shared__
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__

namespace machine {

struct Index {
  unsigned x = 0;
};
inline thread_local Index thread, block;
inline Index grid, block_size;

constexpr int kSharedLimit = 227 * 1024;
// Addresses start at 16: a kernel that needs 1024-byte alignment must make it.
constexpr uint32_t kFirstAddress = 16;

// Threads that wait until `count` of them have come.
struct Rendezvous {
  std::mutex mutex;
  std::condition_variable changed;
  int arrived = 0;
  uint64_t round = 0;
  void wait(int count) {
    std::unique_lock lock(mutex);
    const uint64_t mine = round;
    if (++arrived == count) {
      arrived = 0, ++round;
      changed.notify_all();
    } else {
      changed.wait(lock, [&] { return round != mine; });
    }
  }
};

struct Mbarrier {
  std::mutex mutex;
  std::condition_variable changed;
  int expected = 0, pending = 0;
  uint64_t phase = 0;  // completed ones
};

struct Warp {
  Rendezvous rendezvous;
  uint32_t value[32];
  uint32_t words[32][4];
  uint32_t address[32];
};

inline std::vector<Warp>* warps;
inline Rendezvous* named;                // 16 of them
inline std::vector<Mbarrier>* barriers;  // by address / 8

inline int lane() { return thread.x % 32; }
inline Warp& warp() { return (*warps)[thread.x / 32]; }
inline uint32_t swizzle(uint32_t address, int span) {
  return address ^ ((address >> 7 & (span / 16 - 1)) << 4);
}
[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulated kernel: %s (block %u, thread %u)\n", what, block.x, thread.x);
  std::_Exit(3);
}

}  // namespace machine

namespace cnnkernels {
alignas(1024) inline uint8_t shared_raw[machine::kSharedLimit + 4096];
}

namespace machine {

inline uint8_t* shared_at(uint32_t address, int bytes) {
  const uint32_t at = address - kFirstAddress;
  if (address < kFirstAddress || at + bytes > kSharedLimit) fail("shared address out of range");
  if (address % (bytes > 16 ? 16 : bytes)) fail("misaligned shared access");
  return cnnkernels::shared_raw + at;
}

// Runs body() once per thread of every block; shared memory past `shared` bytes must stay as it
// was.
inline void launch(int blocks, int threads, int shared, const std::function<void()>& body) {
  if (shared > kSharedLimit) fail("too much shared memory");
  grid.x = blocks, block_size.x = threads;
  for (int b = 0; b < blocks; ++b) {
    std::memset(cnnkernels::shared_raw, 0xff, sizeof cnnkernels::shared_raw);
    std::vector<Warp> all_warps(threads / 32);
    std::vector<Rendezvous> all_named(16);
    std::vector<Mbarrier> all_barriers(kSharedLimit / 8 + 8);
    warps = &all_warps, named = all_named.data(), barriers = &all_barriers;
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; ++t)
      pool.emplace_back([&, t] {
        thread.x = t, block.x = b;
        body();
      });
    for (auto& t : pool) t.join();
    for (size_t i = shared; i < sizeof cnnkernels::shared_raw; ++i)
      if (cnnkernels::shared_raw[i] != 0xff) fail("wrote past its shared memory");
  }
}

}  // namespace machine

#define threadIdx machine::thread
#define blockIdx machine::block
#define gridDim machine::grid
#define blockDim machine::block_size

inline void __syncthreads() { machine::named[0].wait(machine::block_size.x); }
inline void __syncwarp() { machine::warp().rendezvous.wait(32); }
inline uint32_t __shfl_sync(uint32_t, uint32_t v, int source) {
  machine::Warp& w = machine::warp();
  w.value[machine::lane()] = v;
  __syncwarp();
  const uint32_t r = w.value[source & 31];
  __syncwarp();
  return r;
}
template <class T>
inline T __ldg(const T* p) {
  return *p;
}
inline uint32_t __funnelshift_r(uint32_t lo, uint32_t hi, uint32_t shift) {
  return static_cast<uint32_t>((uint64_t{hi} << 32 | lo) >> (shift & 31));
}
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
  const uint64_t all = uint64_t{y} << 32 | x;
  uint32_t r = 0;
  for (int i = 0; i < 4; ++i)
    r |= static_cast<uint32_t>(all >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return r;
}
inline float __uint_as_float(uint32_t v) {
  float r;
  std::memcpy(&r, &v, 4);
  return r;
}
inline uint32_t __float_as_uint(float v) {
  uint32_t r;
  std::memcpy(&r, &v, 4);
  return r;
}
inline int min(int a, int b) { return a < b ? a : b; }
