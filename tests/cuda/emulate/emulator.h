// Runs the sm_90a kernels' own source on the CPU, without their timing: one fiber per thread, the
// blocks of a cluster together. Asynchronous work happens as late as its waits allow (loads at
// random times, wgmma and stores when waited for) and warps fall asleep at random, some until
// nobody else gets further, so that a missing wait or a buffer given back too early shows up; a
// round in which no fiber gets further is a deadlock. The headers in common/sm90/ here stand in for
// those in csrc/; what is checked beyond results: alignment, ranges, barrier counts, peers that
// have exited, proxy fences between ordinary stores and what TMA and wgmma read.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "common/types.h"
#include "plan/operand.h"

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
using std::max;
using std::min;

namespace emulator {

using Work = std::function<void()>;
using Works = std::vector<Work>;

// A block's shared memory starts at an address that is 16 modulo 1024.
constexpr uint32_t kSharedStart = 1024 + 16, kSharedBytes = 227 * 1024, kGuard = 1024;
constexpr int kMaxThreads = 1024, kMaxCluster = 8;

struct TensorMap {
  cnnkernels::Dtype dtype;
  int rank;
  char* base;
  uint64_t dims[5], strides[4];
  uint32_t box[5], element_strides[5];
  int swizzle;
  bool im2col, round_to_tf32;
  int lower[2], upper[2];
  int element_bytes() const { return dtype == cnnkernels::Dtype::f32 ? 4 : 2; }
};

struct Barrier {
  int count = 0, arrived = 0;
  int64_t bytes = 0;  // still to come
  uint32_t phase = 0;
};
struct Meeting {
  int arrived = 0;
  uint64_t round = 0;
};
struct Warp {
  Meeting meeting;
  uint32_t address[32], words[32][4];  // what the lanes give to ldmatrix, stmatrix and shuffles
  bool asleep = false;
};
// Who wrote 16 bytes of shared memory last by an ordinary store, and how many fences ago.
struct Writer {
  int thread = -1;
  uint32_t fences = 0;
};
struct Block {
  uint32_t index = 0;
  int rank = 0, threads = 0;
  uint8_t* shared = nullptr;
  uint32_t shared_bytes = 0;
  std::map<uint32_t, Barrier> barriers;
  std::map<int, Meeting> named;
  Warp warps[kMaxThreads / 32];
  std::vector<Writer> writers;
  uint32_t fences[kMaxThreads] = {};  // of each thread, between ordinary stores and TMA or wgmma
};
// What one thread has issued: the open group and the committed ones.
struct Groups {
  Works open;
  std::deque<Works> committed;
  void commit();
  void wait(int pending);
};

[[noreturn]] void fail(const std::string& what);
Block& block();
Block& block_of(int rank);
int thread();
Groups& stores();
Groups& products();
void yield();
void moved();  // some fiber got further
uint8_t* shared(Block& block, uint32_t address, uint32_t bytes);
inline uint8_t* shared(uint32_t address, uint32_t bytes) { return shared(block(), address, bytes); }
uint8_t* stored(uint32_t address, uint32_t bytes);  // the same for an ordinary store
// Whether TMA and wgmma may read there: no ordinary store without a fence by its thread since.
bool fenced(const Block& block, uint32_t address);
using cnnkernels::plan::swizzled;
bool arrive(Meeting& meeting, int threads);  // whether it was the last one
void meet(Meeting& meeting, int threads);
inline Warp& warp() { return block().warps[thread() / 32]; }
inline int lane() { return thread() % 32; }
inline void meet_warp() { meet(warp().meeting, 32); }
Barrier& barrier(Block& block, uint32_t address);
void complete(Barrier& barrier);
void cluster_arrive();
void cluster_wait();
void add_load(Work load);  // to be done at a random time
void register_map(CUtensorMap* map, const TensorMap& m);
void load(uint32_t to, const CUtensorMap* map, uint32_t barrier, std::vector<int> at,
          std::vector<int> offsets = {});
void store(const CUtensorMap* map, uint32_t from, std::vector<int> at);
void run(int grid, int cluster, int threads, int shared_bytes, Work kernel);

}  // namespace emulator

namespace cnnkernels {
// What a kernel declares as extern __shared__; block r of a cluster has its own part.
extern uint8_t shared_raw[];
}  // namespace cnnkernels

inline void __syncwarp() { emulator::meet_warp(); }
inline void __syncthreads() { emulator::meet(emulator::block().named[0], blockDim.x); }
inline uint32_t __shfl_sync(uint32_t, uint32_t v, int source) {
  emulator::Warp& warp = emulator::warp();
  warp.words[emulator::lane()][0] = v;
  __syncwarp();
  v = warp.words[source & 31][0];
  __syncwarp();
  return v;
}
template <class T>
T __ldg(const T* p) {
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
inline float __uint_as_float(unsigned v) {
  float f;
  std::memcpy(&f, &v, 4);
  return f;
}

inline unsigned __float_as_uint(float v) {
  unsigned word;
  std::memcpy(&word, &v, 4);
  return word;
}

template <class... P>
cudaError_t cudaFuncSetAttribute(void (*)(P...), cudaFuncAttribute, int) {
  return cudaSuccess;
}
template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...),
                               const A&... args) {
  int cluster = 1;
  for (unsigned i = 0; i < config->numAttrs; ++i)
    if (config->attrs[i].id == cudaLaunchAttributeClusterDimension)
      cluster = config->attrs[i].val.clusterDim.x;
  emulator::run(config->gridDim.x, cluster, config->blockDim.x, config->dynamicSmemBytes,
                [&] { kernel(args...); });
  return cudaSuccess;
}
