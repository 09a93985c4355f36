// What the plans of all convolution kernels share: limits of the machine, the cost model, the plan.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>

#include "plan/conv_halo.h"
#include "plan/conv_instances.h"
#include "plan/conv_maps.h"

namespace cnnkernels::plan {

constexpr int kSharedLimit = 227 * 1024;  // of one block on sm_90
constexpr int kMaxStages = 8;
constexpr int kRowAlign = 1024;     // buffers start where the 128-byte swizzle repeats
constexpr int kBarrierBytes = 512;  // every kernel's mbarriers

// The cost model, fitted to 1170 timings of the 20 instances on an H100 (41 layers, batch 64 and
// 256, bf16): its choice is within 2 % of the fastest instance in the geometric mean.
constexpr double kClockGhz = 1.73;               // under tensor-core load
constexpr double kBytesPerNs = 2940;             // device memory
constexpr double kIgemmBytesPerClock = 52;       // operands to one multiprocessor, 128 channels
constexpr double kIgemm64BytesPerClock = 68;     // 64 channels x 2N pixels
constexpr double kStreamBytesPerClock = 35;      // weights of halo_stream
constexpr double kLaunchUs = 7.0;                // launch, prologue, last store
constexpr double kMmaOverhead = 9;               // wgmma costs N + this many clocks ...
constexpr double kMmaOverheadResident = 19;      // ... or this many in halo_res
constexpr double kFewStages = 1.0;               // s stages cost a fraction of this / s^2 more
constexpr double kEpilogueClocks = 330;          // per tile ...
constexpr double kEpilogueClocksPerPixel = 7.6;  // ... and pixel of one warpgroup
constexpr double kResidentClocksPerPixel = 3.6;
constexpr double kResidualFactor = 3.6;  // of the epilogue with a residual
constexpr double kPrologueClocks = 900;
// Not fitted: exchange of partial sums through the cluster's shared memory.
constexpr double kReduceClocks = 800;  // two cluster barriers
constexpr double kReduceClocksPerPixel = 18;

// Arithmetic and memory overlap but for the transition where they are nearly equal.
inline double overlapped_us(double clocks, double bytes) {
  const double compute = clocks / kClockGhz / 1e3, memory = bytes / kBytesPerNs / 1e3;
  return kLaunchUs + std::pow(std::pow(compute, 7) + std::pow(memory, 7), 1. / 7);
}

struct ConvPlan {
  const Instance* instance = nullptr;
  std::string why_not;  // empty: the instance can run the problem
  int stages = 0;       // igemm: operand stages; halo_stream: weight stages; halo_res: input boxes
  int buffers = 0;      // staged output tiles per warpgroup
  int shared_bytes = 0;
  int channel_tiles = 0;
  int64_t pixel_tiles = 0;
  int chunks = 0;           // of row_bytes input channels
  int shortcut_chunks = 0;  // of the shortcut's
  int grid = 0;             // blocks, all of a cluster counted
  HaloTile halo;
  double us = 0;  // estimate
  int64_t tiles() const { return pixel_tiles * channel_tiles; }
};

// Pixels of one staged output tile: a divisor of N, a multiple of 8 (the swizzle's period), at most
// 16 KB of 64 channels; 8 KB of 4-byte elements, so that there is always a second buffer to fill
// while the first is being stored.
constexpr int staged_pixels(int pixels, int element_bytes) {
  const int limit = element_bytes == 2 ? 16384 : 8192;
  for (int parts = 1; parts < pixels / 8; ++parts)
    if (pixels % (parts * 8) == 0 && pixels / parts * 64 * element_bytes <= limit)
      return pixels / parts;
  return 8;
}

// halo_stream stages 112 of 224 pixels (14 rows of 8 columns) or the whole tile.
constexpr int halo_staged_pixels(int pixels) { return pixels == 224 ? 112 : pixels; }

inline int align_up(int64_t bytes) {
  return static_cast<int>(ceil_div(bytes, kRowAlign)) * kRowAlign;
}

}  // namespace cnnkernels::plan
