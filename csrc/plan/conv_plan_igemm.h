// How an instance of the implicit GEMM runs a problem.
#pragma once

#include "plan/conv_cost.h"

namespace cnnkernels::plan {

// Blocks that run at once when `split` of them form a cluster: a cluster stays in one group of 16
// or 18 multiprocessors.
inline int clustered_blocks(int sms, int split) {
  return split == 1 ? sms : split == 2 ? std::max(2, sms / 2 * 2) : std::max(split, sms / 16 * 16);
}

// `tiles` one after another, each multiplied in `sums` clocks and stored in `epilogue`: a tile's
// sums begin when those of the tile before have ended and the tile before that has been stored.
inline double pingpong_clocks(int64_t tiles, double sums, double epilogue) {
  const int64_t pairs = (tiles - 1) / 2, rest = (tiles - 1) % 2;
  return pairs * std::max(2 * sums, sums + epilogue) + rest * sums + sums + epilogue;
}

inline void plan_igemm(const ConvProblem& x, int sms, ConvPlan& plan) {
  const Instance& i = *plan.instance;
  if (x.pool) {
    plan.why_not = "igemm tiles hold no pooling windows";
    return;
  }
  const int parts = i.channels == 64 ? 2 : 1, e = x.element_bytes();
  plan.chunks = static_cast<int>(ceil_div(int64_t{x.c} * e, 128));
  plan.shortcut_chunks = static_cast<int>(ceil_div(int64_t{x.shortcut_c} * e, 128));
  plan.channel_tiles = static_cast<int>(ceil_div(x.k, i.channels));
  plan.pixel_tiles = ceil_div(x.pixels(), parts * i.pixels);
  const int steps = plan.chunks * x.r * x.s + plan.shortcut_chunks;
  if (steps < i.split) {
    plan.why_not = "fewer steps of K than blocks to share them";
    return;
  }
  const int stage = (i.channels + parts * i.pixels) * 128;
  const int staged = 2 * 64 * e * (i.split > 1 ? i.pixels / i.split : staged_pixels(i.pixels, e));
  // Short reductions live on output traffic, long ones on operand stages; a residual's prefetch
  // needs two buffers or it waits for its own store, and so do the many parts of a 4-byte tile.
  auto stages = [&](int buffers) {
    return std::min(kMaxStages,
                    (kSharedLimit - kRowAlign - kBarrierBytes - buffers * staged) / stage);
  };
  if (i.split > 1) {
    plan.buffers = 1;
  } else {
    const int least = x.residual || e == 4 ? 2 : 1;
    plan.buffers = x.residual && steps <= 8 ? 4 : steps <= 4 ? 2 : least;
    while (plan.buffers > least && stages(plan.buffers) < 3) --plan.buffers;
    while (plan.buffers < 4 && stages(plan.buffers + 1) == stages(plan.buffers)) ++plan.buffers;
  }
  plan.stages = stages(plan.buffers);
  if (plan.stages < 2) {
    plan.why_not = "shared memory holds fewer than two stages";
    return;
  }
  plan.shared_bytes = kRowAlign + plan.stages * stage + plan.buffers * staged + kBarrierBytes;
  plan.grid =
      static_cast<int>(i.split > 1 ? plan.tiles() * i.split : std::min<int64_t>(plan.tiles(), sms));

  // Per tile: a wgmma pair takes N clocks for 32 bytes of K of 128 channels (or 2N pixels of 64).
  const double rate = parts == 2 ? kIgemm64BytesPerClock : kIgemmBytesPerClock;
  const double own_steps = static_cast<double>(ceil_div(steps, i.split));
  const double mma =
      own_steps * 4.0 * (i.pixels * (1 + kFewStages / (plan.stages * plan.stages)) + kMmaOverhead);
  // Sums that wait for operands take as long as those arrive.
  const double sums = std::max(mma, own_steps * (stage / rate));
  double epilogue = kEpilogueClocks + kEpilogueClocksPerPixel * i.pixels / i.split *
                                          (i.pingpong ? 2 : 1) * (x.residual ? kResidualFactor : 1);
  if (i.split > 1) epilogue += kReduceClocks + kReduceClocksPerPixel * i.pixels;
  const int64_t waves = ceil_div(plan.tiles() * i.split, clustered_blocks(sms, i.split));
  const double clocks = i.pingpong ? pingpong_clocks(waves, sums, epilogue)
                                   : static_cast<double>(waves) * (sums + epilogue);
  plan.us = overlapped_us(clocks + kPrologueClocks, x.bytes());
}

}  // namespace cnnkernels::plan
