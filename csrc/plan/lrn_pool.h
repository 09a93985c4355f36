// Tiles of the fused LRN + max-pool kernels (3x3/2), and when they can run.
#pragma once

#include <algorithm>
#include <cstdint>

#include "plan/lrn.h"
#include "plan/pool.h"

namespace cnnkernels {
namespace plan {

// Most threads of a block, and how many such blocks share a multiprocessor (64 registers each; 56
// and three of 384 measured up to 9 % slower on an H100).
constexpr int kLrnPoolThreads = 512, kLrnPoolBlocks = 2;
constexpr int kLrnPoolResident = kLrnPoolBlocks * kLrnPoolThreads;
constexpr int kLrnPoolProcessors = 132;  // of an H100

struct LrnPoolTile {
  int width = 0, strips = 0;  // output columns of a block
  int rows = 0, bands = 0;    // output rows of a block
  int threads = 0;            // 0: the kernel can't run
};

// NCHW: rows of outputs of a block, whose input is a range of pixels of each channel; 0: it would
// not pay. kLrnPoolPixels: most of them, at any alignment.
constexpr int kLrnPoolPixels16 = 1017, kLrnPoolPixels32 = 509;
inline int lrn_pool_rows(const PoolShape& s, Dtype dtype) {
  const int most = (dtype == Dtype::f32 ? kLrnPoolPixels32 : kLrnPoolPixels16) / std::max(s.w, 1);
  const int rows = std::min((most - 1) / 2, s.oh);
  if (rows < 1 || (rows == 1 && s.oh > 1)) return 0;  // each band repeats a row
  const int bands = (s.oh + rows - 1) / rows;
  return (s.oh + bands - 1) / bands;
}

inline bool lrn_pool_fuses(const LrnShape& lrn, const PoolShape& pool, Dtype dtype, Layout layout,
                           bool vectors) {
  const bool window = pool.kernel_h == 3 && pool.kernel_w == 3 && pool.stride_h == 2 &&
                      pool.stride_w == 2 && specialised_window(pool);
  const LrnKernel kernel = choose_lrn_kernel(lrn, dtype, layout, vectors);
  if (layout == Layout::nchw)
    return window && kernel == LrnKernel::planes && lrn_pool_rows(pool, dtype) > 0;
  return window && kernel == LrnKernel::vector &&
         pool.c * pool.h * pool.w < (int64_t{1} << 31);  // an image, which it indexes in 32 bits
}

// `vectors`: 16-byte vectors per pixel. A block has one thread per input column and vector;
// neighbouring strips and bands repeat one input column or row.
inline LrnPoolTile lrn_pool_tile(const PoolShape& s, int64_t vectors) {
  LrnPoolTile t;
  // The width that keeps most output columns at work on a multiprocessor.
  int most = 0;
  for (int strips = 1; strips <= s.ow; ++strips) {
    const int width = (s.ow + strips - 1) / strips;
    const int64_t items = std::min<int64_t>(2 * width + 1, s.w) * vectors;
    if (items > kLrnPoolThreads) continue;
    const int threads = static_cast<int>(items + 31) / 32 * 32;
    const int columns = kLrnPoolResident / threads * width;
    if (columns <= most) continue;
    most = columns;
    t.width = width, t.strips = (s.ow + width - 1) / width, t.threads = threads;
  }
  if (t.threads == 0) return t;
  // Fewest row steps on the busiest multiprocessor.
  const int64_t slots = int64_t{kLrnPoolProcessors} * (kLrnPoolResident / t.threads);
  int64_t best = INT64_MAX;
  for (int bands = 1; bands <= 8 && bands <= s.oh; ++bands) {
    const int rows = (s.oh + bands - 1) / bands;
    const int64_t waves = (s.n * t.strips * bands + slots - 1) / slots;
    const int64_t steps = waves * (2 * rows + 1);
    if (steps < best) best = steps, t.rows = rows, t.bands = (s.oh + rows - 1) / rows;
  }
  return t;
}

}  // namespace plan
}  // namespace cnnkernels
