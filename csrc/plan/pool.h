// Max-pool arithmetic: output sizes (torch's rules), first valid tap, which kernel a call gets, and
// the tiles of the NCHW kernels. Included by the kernels, so what CPU tests cover is what runs.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/types.h"
#include "plan/host_device.h"

namespace cnnkernels {

struct PoolShape {
  int64_t n = 0, c = 0;
  int h = 0, w = 0;
  int kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1;
  int pad_h = 0, pad_w = 0, dilation_h = 1, dilation_w = 1;
  int oh = 0, ow = 0;
};

namespace plan {

// Windows along one dimension. In ceil mode the last window must start inside the input or the
// left padding (torch's rule).
CNNKERNELS_HD int64_t pooled_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding,
                                  int64_t dilation, bool ceil_mode) {
  const int64_t span = size + 2 * padding - dilation * (kernel - 1) - 1;
  if (span < 0 && !ceil_mode) return 0;
  int64_t out = (span + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  if (ceil_mode && (out - 1) * stride >= size + padding) --out;
  return out < 0 ? 0 : out;
}

// Smallest tap t with start + t * dilation >= 0.
CNNKERNELS_HD int first_valid_tap(int start, int dilation) {
  return start >= 0 ? 0 : (-start + dilation - 1) / dilation;
}

enum class PoolKernel { vector, planes, any_vector, any };

inline const char* pool_kernel_name(PoolKernel kernel) {
  switch (kernel) {
    case PoolKernel::vector: return "vector";          // channels_last, window unrolled
    case PoolKernel::planes: return "planes";          // NCHW, tiles of planes in shared memory
    case PoolKernel::any_vector: return "any_vector";  // channels_last, run-time window
    default: return "any";                             // run-time window, one element per thread
  }
}

inline bool specialised_window(const PoolShape& s) {
  const bool square = s.kernel_h == s.kernel_w && s.stride_h == s.stride_w;
  const bool known = (s.kernel_h == 3 && (s.stride_h == 2 || s.stride_h == 1)) ||
                     (s.kernel_h == 2 && s.stride_h == 2);
  return square && known && s.dilation_h == 1 && s.dilation_w == 1 && s.pad_h <= 1 && s.pad_w <= 1;
}

// `vectors`: every pointer is 16-byte aligned and C is a multiple of the 16-byte vector.
inline PoolKernel choose_pool_kernel(const PoolShape& s, Layout layout, bool vectors) {
  if (layout == Layout::nchw) {
    // Rows so long that a tile of a few of them would not fit in shared memory go the general way.
    const bool fits = std::max(s.w, s.ow) <= 1024;
    return specialised_window(s) && fits ? PoolKernel::planes : PoolKernel::any;
  }
  if (!vectors) return PoolKernel::any;
  return specialised_window(s) ? PoolKernel::vector : PoolKernel::any_vector;
}

// A tile of the NCHW kernels: `planes` whole planes, or (bands > 1) `rows` units of one plane,
// where a unit is an output row (forward) or stride input rows (backward).
struct PlaneTile {
  int planes = 1, rows = 1, bands = 1;
};

// About 12 KB of input per tile: smaller tiles pay launch and load latency serially (measured on an
// H100: 4-row bands of 112 x 112 took 3.3 x the time of 28-row bands).
constexpr int kTileBytes = 12 * 1024;

inline PlaneTile plane_tile(int64_t plane_bytes, int units, int64_t unit_bytes, int64_t planes) {
  PlaneTile t;
  t.rows = units;
  if (plane_bytes < 2 * kTileBytes) {
    t.planes = static_cast<int>(std::max<int64_t>(
        1, std::min<int64_t>((kTileBytes + plane_bytes / 2) / std::max<int64_t>(plane_bytes, 1),
                             planes)));
    t.planes = std::min(t.planes, 256);
    return t;
  }
  const int64_t wanted = std::max<int64_t>(kTileBytes / unit_bytes, 1);
  t.bands = static_cast<int>(std::max<int64_t>(1, units / wanted));
  t.rows = (units + t.bands - 1) / t.bands;
  t.bands = (units + t.rows - 1) / t.rows;
  return t;
}

// Rows per item of a block that walks down columns in steps of `step` rows, after `lead` rows of
// run-in: the length that keeps its threads busiest. `columns` items stand side by side.
inline int strip_rows(int rows, int64_t columns, int threads, int lead, int step) {
  int best = rows;
  int64_t best_steps = INT64_MAX;
  const int least = std::max(4, 2 * step - lead);  // strip + lead is a multiple of step
  for (int strip = least - (least + lead) % step; strip < rows + step; strip += step) {
    const int64_t items = columns * ((rows + strip - 1) / strip);
    const int64_t steps = (items + threads - 1) / threads * (strip + lead);
    if (steps < best_steps) best_steps = steps, best = strip;
  }
  return std::max(best, 1);
}

}  // namespace plan
}  // namespace cnnkernels
