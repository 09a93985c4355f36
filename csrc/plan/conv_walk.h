// Which products of a tile's sums a block computes, and in which order: igemm's walk over taps and
// chunks of channels. A tile's steps are the convolution's, then the shortcut's; `split` blocks of
// a cluster take neighbouring runs of them.
#pragma once

#include "plan/conv_problem.h"
#include "plan/host_device.h"

namespace cnnkernels::plan {

struct StepRange {
  int first, last;  // one past the end
};

// Run `rank` of `parts` as equal runs of `steps`; none is empty while steps >= parts.
CNNKERNELS_HD StepRange split_steps(int steps, int rank, int parts) {
  return {steps * rank / parts, steps * (rank + 1) / parts};
}

// What of `range` lies in [begin, begin + count), counted from `begin`.
CNNKERNELS_HD StepRange steps_inside(StepRange range, int begin, int count) {
  const int first = range.first - begin, last = range.last - begin;
  return {first < 0 ? 0 : first, last < count ? last : count};
}

// Step `index` of a convolution: first channel of its chunk, tap, filter row and column. Chunks of
// a tap are neighbours.
struct ConvStep {
  int c, tap, r, s;
  CNNKERNELS_HD ConvStep(int index, int chunks, int chunk_channels, int filter_width)
      : c(index % chunks * chunk_channels),
        tap(index / chunks),
        r(tap / filter_width),
        s(tap % filter_width) {}
  CNNKERNELS_HD void advance(int channels, int chunk_channels, int filter_width) {
    if ((c += chunk_channels) < channels) return;
    c = 0, ++tap;
    if (++s == filter_width) s = 0, ++r;
  }
};

}  // namespace cnnkernels::plan
