// How an instance runs a problem (tiles, shared memory, grid, estimate) and which instance is best.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

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
  int chunks = 0;  // of row_bytes input channels
  int grid = 0;
  HaloTile halo;
  double us = 0;  // estimate
  int64_t tiles() const { return pixel_tiles * channel_tiles; }
};

// Pixels of one staged output tile: at most 16 KB of 64 channels, a divisor of N, a multiple of 16.
constexpr int staged_pixels(int pixels, int element_bytes) {
  for (int parts = 1; parts <= pixels / 16; ++parts)
    if (pixels % (parts * 16) == 0 && pixels / parts * 64 * element_bytes <= 16384)
      return pixels / parts;
  return 16;
}

// halo_stream stages 112 of 224 pixels (14 rows of 8 columns) or the whole tile.
constexpr int halo_staged_pixels(int pixels) { return pixels == 224 ? 112 : pixels; }

inline int align_up(int64_t bytes) {
  return static_cast<int>(ceil_div(bytes, kRowAlign)) * kRowAlign;
}

// Limits of all instances; `x` is the whole problem. "" when there are none.
inline std::string conv_why_not(const ConvProblem& x) {
  auto text = [](const char* format, auto... values) {
    char buffer[160];
    std::snprintf(buffer, sizeof buffer, format, values...);
    return std::string(buffer);
  };
  const int lane = 16 / x.element_bytes();
  if (x.dtype == Dtype::f64) return "the kernels take bf16, fp16 and float32 (as TF32)";
  if (x.groups < 1 || x.c % x.groups || x.k % x.groups)
    return text("groups=%d must divide C=%d and K=%d", x.groups, x.c, x.k);
  if (x.groups > 8)
    return text("groups=%d: the kernels run one group after another, up to 8", x.groups);
  if (x.c / x.groups % lane || x.k / x.groups % lane)
    return text("C=%d and K=%d per group must be multiples of %d (TMA moves 16 bytes)",
                x.c / x.groups, x.k / x.groups, lane);
  if (x.p() < 1 || x.q() < 1) return "the filter exceeds the padded input";
  if (x.pixels() >= (int64_t{1} << 31) || x.n > (1 << 24)) return "more than 2^31 output pixels";
  if ((x.r - 1) * x.dilation_h > 255 || (x.s - 1) * x.dilation_w > 255)
    return "a dilated filter over 256 pixels";
  if (const char* error = map_error(im2col_map(x.group(), x.c, 128, 64))) return error;
  if (const char* error = map_error(weight_map(x.group(), 128, 128))) return error;
  return "";
}

inline void plan_igemm(const ConvProblem& x, int sms, ConvPlan& plan) {
  const Instance& i = *plan.instance;
  if (x.pool) {
    plan.why_not = "igemm tiles hold no pooling windows";
    return;
  }
  const int parts = i.channels == 64 ? 2 : 1, e = x.element_bytes();
  plan.chunks = static_cast<int>(ceil_div(int64_t{x.c} * e, 128));
  plan.channel_tiles = static_cast<int>(ceil_div(x.k, i.channels));
  plan.pixel_tiles = ceil_div(x.pixels(), parts * i.pixels);
  const int steps = plan.chunks * x.r * x.s;
  const int stage = (i.channels + parts * i.pixels) * 128;
  const int staged = 2 * staged_pixels(i.pixels, e) * 64 * e;
  // Short reductions live on output traffic, long ones on operand stages; a residual's prefetch
  // needs two buffers or it waits for its own store.
  plan.buffers = x.residual ? (steps <= 8 ? 4 : 2) : steps <= 4 ? 2 : 1;
  auto stages = [&] {
    return (kSharedLimit - kRowAlign - kBarrierBytes - plan.buffers * staged) / stage;
  };
  while (plan.buffers > (x.residual ? 2 : 1) && stages() < 3) --plan.buffers;
  plan.stages = std::min(stages(), kMaxStages);
  if (plan.stages < 2) {
    plan.why_not = "shared memory holds fewer than two stages";
    return;
  }
  plan.shared_bytes = kRowAlign + plan.stages * stage + plan.buffers * staged + kBarrierBytes;
  plan.grid = static_cast<int>(std::min<int64_t>(plan.tiles(), sms));

  // Per tile: a wgmma pair takes N clocks for 32 bytes of K of 128 channels (or 2N pixels of 64).
  const double rate = parts == 2 ? kIgemm64BytesPerClock : kIgemmBytesPerClock;
  const double mma =
      steps * 4.0 * (i.pixels * (1 + kFewStages / (plan.stages * plan.stages)) + kMmaOverhead);
  const double epilogue =
      kEpilogueClocks + kEpilogueClocksPerPixel * i.pixels * (x.residual ? kResidualFactor : 1);
  const double waves = static_cast<double>(ceil_div(plan.tiles(), sms));
  plan.us = overlapped_us(
      waves * (std::max(mma, steps * (stage / rate)) + epilogue) + kPrologueClocks, x.bytes());
}

inline void plan_halo(const ConvProblem& x, int sms, ConvPlan& plan) {
  const Instance& i = *plan.instance;
  const bool resident = i.family == Family::halo_res;
  const int e = x.element_bytes();
  if (x.stride_h != 1 || x.stride_w != 1) plan.why_not = "halo kernels have stride 1";
  if (x.dilation_h != 1 || x.dilation_w != 1) plan.why_not = "halo kernels have dilation 1";
  if (x.residual && x.pool) plan.why_not = "pooling and a residual exclude each other";
  if (x.r * x.s == 1) plan.why_not = "a 1x1 filter has no halo";
  plan.chunks = static_cast<int>(ceil_div(int64_t{x.c} * e, i.row_bytes));
  if (resident && plan.chunks > 1) plan.why_not = "the weights of so many channels don't fit";
  if (!plan.why_not.empty()) return;

  plan.halo = halo_tile(x, i.pixels);
  const HaloTile& t = plan.halo;
  if (x.pool && x.p() * x.q() < 0.85 * t.tiles(1) * i.pixels) {
    plan.why_not = "half-empty tiles: pooling in a kernel of its own is faster";
    return;
  }
  if (!t.whole_rows && i.pixels == 208) {
    plan.why_not = "its tile suits whole rows of the map only";
    return;
  }
  if (t.whole_rows && e == 4 && i.pixels == 224 && !resident) {
    plan.why_not = "TF32 stages 224 pixels in two halves, which whole rows don't have";
    return;
  }
  if (t.pitch > 256 || t.box_rows > 256) {
    plan.why_not = "the input box exceeds 256 pixels a side";
    return;
  }
  plan.channel_tiles = static_cast<int>(ceil_div(x.k, i.channels));
  plan.pixel_tiles = t.tiles(x.n);
  const int taps = x.r * x.s;
  const int box = align_up(int64_t{t.box_pixels()} * i.row_bytes);
  const int64_t weight_tap = int64_t{i.channels} * i.row_bytes;
  int64_t fixed = kRowAlign + kBarrierBytes;
  if (resident) {  // a box becomes the staging buffer of its own output
    const int slot = std::max(box, align_up(int64_t{i.pixels} * 64 * e));
    plan.stages = 2;
    plan.buffers = 0;
    fixed += align_up(taps * weight_tap) + 2 * plan.stages * slot;
    if (fixed > kSharedLimit) plan.why_not = "weights and input boxes exceed shared memory";
  } else {
    const bool half = i.pixels == 224 && !t.whole_rows;
    plan.buffers = 1;
    fixed += 2 * box + 2 * int64_t{half ? halo_staged_pixels(224) : i.pixels} * 64 * e;
    plan.stages =
        static_cast<int>(std::min<int64_t>(kMaxStages, (kSharedLimit - fixed) / weight_tap));
    if (fixed > kSharedLimit || plan.stages < 3)
      plan.why_not = "input boxes leave no room for weights";
    fixed += plan.stages * weight_tap;
  }
  if (!plan.why_not.empty()) return;
  plan.shared_bytes = static_cast<int>(fixed);

  const double mma = taps * plan.chunks * (i.row_bytes / 32.0) *
                     (i.pixels + (resident ? kMmaOverheadResident : kMmaOverhead));
  const double epilogue =
      kEpilogueClocks + (resident ? kResidentClocksPerPixel : kEpilogueClocksPerPixel) * i.pixels *
                            (x.residual ? 2 : 1);
  double clocks;
  if (resident) {  // blocks keep a channel tile; their two warpgroups take pixel tiles in turn
    if (plan.channel_tiles > sms) {
      plan.why_not = "more channel tiles than multiprocessors";
      return;
    }
    const int64_t blocks = std::min<int64_t>(plan.pixel_tiles, sms / plan.channel_tiles);
    plan.grid = static_cast<int>(blocks * plan.channel_tiles);
    const double rounds = static_cast<double>(ceil_div(plan.pixel_tiles, blocks));
    clocks = rounds * std::max(mma / 2, (mma / 2 + epilogue) / 2) + mma / 2 + epilogue +
             taps * weight_tap / 40.0 + kPrologueClocks;
  } else {
    plan.grid = static_cast<int>(std::min<int64_t>(plan.tiles(), sms));
    const double waves = static_cast<double>(ceil_div(plan.tiles(), sms));
    const double operands = plan.chunks * (taps * weight_tap + box) / kStreamBytesPerClock;
    clocks = waves * (std::max(mma, operands) + epilogue) + kPrologueClocks;
  }
  plan.us = overlapped_us(clocks, x.bytes());
}

// `x`: one group. sms: multiprocessors.
inline ConvPlan plan_instance(const ConvProblem& x, const Instance& instance, int sms) {
  ConvPlan plan;
  plan.instance = &instance;
  if (instance.family == Family::igemm)
    plan_igemm(x, sms, plan);
  else
    plan_halo(x, sms, plan);
  return plan;
}

// Every instance's plan, the fastest estimate first; unusable ones last.
inline std::vector<ConvPlan> plan_all(const ConvProblem& x, int sms) {
  std::vector<ConvPlan> plans;
  for (const Instance& instance : kInstances) plans.push_back(plan_instance(x, instance, sms));
  std::stable_sort(plans.begin(), plans.end(), [](const ConvPlan& a, const ConvPlan& b) {
    if (a.why_not.empty() != b.why_not.empty()) return a.why_not.empty();
    return a.why_not.empty() && a.us < b.us;
  });
  return plans;
}

inline ConvPlan choose_plan(const ConvProblem& x, int sms) { return plan_all(x, sms).front(); }

inline std::string reason(const ConvPlan& plan, int sms) {
  char text[256];
  std::snprintf(
      text, sizeof text,
      "%lld tiles of %d channels x %d pixels on %d multiprocessors (%.2f waves), estimated "
      "%.1f us: %s",
      static_cast<long long>(plan.tiles()), plan.instance->channels,
      plan.instance->pixels *
          (plan.instance->channels == 64 && plan.instance->family == Family::igemm ? 2 : 1),
      sms, static_cast<double>(plan.tiles()) / sms, plan.us, plan.instance->why);
  return text;
}

}  // namespace cnnkernels::plan
