// Tiles of the fused LRN + max-pool kernel (channels_last, 3x3/2), and when it can run.
#pragma once

#include <algorithm>
#include <cstdint>

#include "plan/lrn.h"
#include "plan/pool.h"

namespace cnnkernels {
namespace plan {

constexpr int kLrnPoolColumns = 2;    // (column, channel vector) items per thread
constexpr int kLrnPoolThreads = 352;  // most threads of a block: two blocks leave 88 registers each
constexpr int kLrnPoolSlots = 2 * 132;  // blocks that run at a time on an H100

struct LrnPoolTile {
  int width = 0, strips = 0;  // output columns of a block
  int rows = 0, bands = 0;    // output rows of a block
  int threads = 0;            // 0: the kernel can't run
};

inline bool lrn_pool_fuses(const LrnShape& lrn, const PoolShape& pool, Dtype dtype, Layout layout,
                           bool vectors) {
  return layout == Layout::nhwc && pool.kernel_h == 3 && pool.kernel_w == 3 && pool.stride_h == 2 &&
         pool.stride_w == 2 && specialised_window(pool) &&
         choose_lrn_kernel(lrn, dtype, layout, vectors) == LrnKernel::vector;
}

// `vectors`: 16-byte vectors per pixel. Neighbouring strips and bands repeat one input column or
// row.
inline LrnPoolTile lrn_pool_tile(const PoolShape& s, int64_t vectors) {
  LrnPoolTile t;
  const int64_t most = int64_t{kLrnPoolColumns} * kLrnPoolThreads;
  for (t.strips = 1; t.strips <= s.ow; ++t.strips) {
    t.width = (s.ow + t.strips - 1) / t.strips;
    const int64_t items = std::min<int64_t>(2 * t.width + 1, s.w) * vectors;
    if (items > most) continue;
    t.strips = (s.ow + t.width - 1) / t.width;
    t.threads = static_cast<int>((items + 32 * kLrnPoolColumns - 1) / (32 * kLrnPoolColumns)) * 32;
    break;
  }
  if (t.threads == 0) return t;
  // Fewest row steps on the busiest multiprocessor.
  int64_t best = INT64_MAX;
  for (int bands = 1; bands <= 8 && bands <= s.oh; ++bands) {
    const int rows = (s.oh + bands - 1) / bands;
    const int64_t waves = (s.n * t.strips * bands + kLrnPoolSlots - 1) / kLrnPoolSlots;
    const int64_t steps = waves * (2 * rows + 1);
    if (steps < best) best = steps, t.rows = rows, t.bands = (s.oh + rows - 1) / rows;
  }
  return t;
}

}  // namespace plan
}  // namespace cnnkernels
