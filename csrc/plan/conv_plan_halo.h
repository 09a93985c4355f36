// How an instance of the halo kernels runs a problem.
#pragma once

#include "plan/conv_cost.h"

namespace cnnkernels::plan {

inline void plan_halo(const ConvProblem& x, int sms, ConvPlan& plan) {
  const Instance& i = *plan.instance;
  const bool resident = i.family == Family::halo_res;
  const int e = x.element_bytes();
  if (x.stride_h != 1 || x.stride_w != 1) plan.why_not = "halo kernels have stride 1";
  if (x.dilation_h != 1 || x.dilation_w != 1) plan.why_not = "halo kernels have dilation 1";
  if (x.residual && x.pool) plan.why_not = "pooling and a residual exclude each other";
  if (x.r * x.s == 1) plan.why_not = "a 1x1 filter has no halo";
  if (x.two_outputs) plan.why_not = "halo kernels write one output";
  if (x.shortcut_c) plan.why_not = "halo kernels read one input";
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
  const int parts = !resident && i.channels == 64 ? 2 : 1;  // pixel tiles of a block's tile
  plan.pixel_tiles = ceil_div(t.tiles(x.n), parts);
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
    fixed += 2 * parts * box + 2 * int64_t{half ? halo_staged_pixels(224) : i.pixels} * 64 * e;
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
    const double operands = plan.chunks * (taps * weight_tap + parts * box) / kStreamBytesPerClock;
    clocks = waves * (std::max(mma, operands) + epilogue) + kPrologueClocks;
  }
  plan.us = overlapped_us(clocks, x.bytes());
}

}  // namespace cnnkernels::plan
