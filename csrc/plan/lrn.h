// LRN arithmetic: window bounds (torch's rules), which kernel a call gets, tiles of the NCHW
// kernels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/types.h"
#include "plan/host_device.h"

namespace cnnkernels {

// y = v * (k + alpha / size * sum of v^2 over the window)^-beta, v = relu?(x + bias?).
struct LrnShape {
  int64_t n = 0, c = 0, pixels = 0;  // pixels = H * W
  int size = 5;
  double alpha = 1e-4, beta = 0.75, k = 1.0;
  bool relu = false;
};

namespace plan {

// Channels of the window before and after its own: torch puts the extra one of an even size in
// front.
CNNKERNELS_HD constexpr int lrn_front(int size) { return size / 2; }
CNNKERNELS_HD constexpr int lrn_back(int size) { return (size - 1) / 2; }

enum class LrnKernel { vector, planes, any };

inline const char* lrn_kernel_name(LrnKernel kernel) {
  switch (kernel) {
    case LrnKernel::vector: return "vector";  // channels_last, window of 5, one vector per thread
    case LrnKernel::planes: return "planes";  // NCHW, window of 5, walks the channels
    default: return "any";                    // run-time window
  }
}

// The fast kernels use approximate lg2/ex2, right for a positive base; fp32 needs the corrected
// power of -3/4, which is the only one they have. `vectors`: 16-byte pointers, C a multiple of the
// vector.
inline LrnKernel choose_lrn_kernel(const LrnShape& s, Dtype dtype, Layout layout, bool vectors) {
  const bool power =
      s.alpha >= 0 && s.k >= 1e-6 && s.beta >= 0 && (dtype != Dtype::f32 || s.beta == 0.75);
  if (s.size != 5 || !power) return LrnKernel::any;
  if (layout == Layout::nhwc) return vectors ? LrnKernel::vector : LrnKernel::any;
  return LrnKernel::planes;
}

// A block of the NCHW kernels: `pixels` of one image, `channels` of them written.
struct LrnTile {
  int pixels = 0, pixel_tiles = 1, channels = 0, channel_tiles = 1;
};

constexpr int kLrnProcessors = 132;  // of an H100

// Splits channels where that shortens the busiest multiprocessor's walk. `blocks`: of one piece;
// `resident`: those that share a multiprocessor; `stage`: channels a block takes at once; `lag`:
// channels it walks before and after its own.
inline void split_channels(LrnTile& t, int64_t c, int64_t blocks, int stage, int lag,
                           int resident) {
  const int64_t slots = int64_t{kLrnProcessors} * resident;
  int64_t best = INT64_MAX;
  for (int64_t pieces = 1; pieces == 1 || c >= 2 * stage * pieces; ++pieces) {
    const int channels = static_cast<int>((c + pieces * stage - 1) / (pieces * stage)) * stage;
    const int tiles = static_cast<int>((c + channels - 1) / channels);
    if (channels > 2048) continue;  // a block keeps their biases
    const int64_t waves = (blocks * tiles + slots - 1) / slots;
    // A block's first loads cost about a stage.
    const int64_t steps = waves * (channels + (tiles > 1 ? 2 * lag : lag) + stage);
    if (steps < best) best = steps, t.channels = channels, t.channel_tiles = tiles;
  }
}

inline LrnTile lrn_tile(const LrnShape& s, int pixels_per_block, int stage, int lag, int resident) {
  LrnTile t;
  t.pixel_tiles = static_cast<int>((s.pixels + pixels_per_block - 1) / pixels_per_block);
  t.pixels = static_cast<int>((s.pixels + t.pixel_tiles - 1) / t.pixel_tiles);
  // Where planes keep 16-byte alignment, tiles do too.
  if (s.pixels % 8 == 0) t.pixels = std::min((t.pixels + 7) / 8 * 8, pixels_per_block / 8 * 8);
  t.pixel_tiles = static_cast<int>((s.pixels + t.pixels - 1) / t.pixels);
  split_channels(t, s.c, s.n * t.pixel_tiles, stage, lag, resident);
  return t;
}

}  // namespace plan
}  // namespace cnnkernels
