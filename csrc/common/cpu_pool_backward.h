// Max-pooling's gradient for a few planes or rows on the CPU: what the pooling op and its fusion
// with LRN share. One object per thread holds the buffers; Isa is with_isa's. Windows are added in
// ascending order, in fp32.
#pragma once

#include "common/cpu_pool_loops.h"

namespace cnnkernels {

class PoolBackward {
 public:
  explicit PoolBackward(const PoolParams& p) : p_(p) {}

  // Gradient of input rows [row0, row1) of one NCHW plane; grad and offsets of the whole plane.
  // Each window adds to the pixel that its offset names: for few windows to a pixel that is less
  // work than for each pixel to look for its windows.
  template <class Isa, class G, class Offset, class D>
  CNNKERNELS_INLINE void plane(const G* grad, const Offset* offsets, int64_t row0, int64_t row1,
                               D* dx) {
    if constexpr (std::is_same_v<D, float>) {
      scatter<Isa>(grad, offsets, row0, row1, dx);
    } else {
      const int64_t pixels = (row1 - row0) * p_.w;
      sums_.resize(padded_to_lanes(pixels));
      scatter<Isa>(grad, offsets, row0, row1, sums_.data());
      for (int64_t i = 0; i < pixels; i += kLanes)
        store<Isa>(sums_.data() + i, dx + i, std::min(kLanes, pixels - i));
    }
  }

  // Gradient of input row `row` of one NHWC image: dx [w * channels].
  template <class Isa, class G, class Offset, class D>
  CNNKERNELS_INLINE void image_row(const G* grad, const Offset* offsets, int64_t channels,
                                   int64_t row, D* dx) {
    GatherTaps<G, Offset> taps(p_.taps());
    if (starts_.empty()) find_windows();
    const int64_t first = p_.first_window(row), last = p_.last_window(row + 1);
    for (int64_t column = 0; column < p_.w; ++column, dx += channels) {
      taps.count = 0;
      for (int64_t o = first; o < last; ++o) {
        const int64_t r = row + p_.ph - o * p_.sh;
        if (p_.dh != 1 && r % p_.dh != 0) continue;
        const int64_t label = (p_.dh == 1 ? r : r / p_.dh) * p_.kw;
        for (int64_t i = starts_[column]; i < starts_[column + 1]; ++i) {
          const int64_t at = (o * p_.ow + windows_[i].q) * channels;
          taps.add(grad + at, offsets + at, label + windows_[i].s);
        }
      }
      for_channels<1, 2, 4, 9>(channels, taps.count, [&](auto known) CNNKERNELS_LAMBDA {
        return [=, taps = LocalGatherTaps<known.value, G, Offset>(taps)](int64_t i, int64_t n)
                   CNNKERNELS_LAMBDA {
                     float sum[kLanes];
                     pool_gather<known.value, Isa>(taps, i, n, sum);
                     store<Isa>(sum, dx + i, n);
                   };
      });
    }
  }

 private:
  static constexpr int64_t kOutside = INT64_MIN / 4;

  // The windows over each column, in ascending order: column i is tap s of window q for each of
  // windows_[starts_[i]] to windows_[starts_[i + 1]].
  void find_windows() {
    for (int64_t column = 0; column < p_.w; ++column) {
      starts_.push_back(windows_.size());
      for (int64_t s = p_.kw - 1; s >= 0; --s) {
        const int64_t left = column + p_.pw - s * p_.dw, q = left / p_.sw;
        if (left >= 0 && left % p_.sw == 0 && q < p_.ow) windows_.push_back({q, s});
      }
    }
    starts_.push_back(windows_.size());
  }

  template <class Isa, class G, class Offset>
  CNNKERNELS_INLINE void scatter(const G* grad, const Offset* offsets, int64_t row0, int64_t row1,
                                 float* dx) {
    if (taps_.empty()) {
      // A whole table for one-byte positions: then the compiler drops the check of the index.
      taps_.assign(std::max<int64_t>(p_.taps(), 256), kOutside);
      for (int64_t t = 0; t < p_.taps(); ++t)
        taps_[t] = t / p_.kw * p_.dh * p_.w + t % p_.kw * p_.dw;
      grads_.resize(padded_to_lanes(p_.ow));
    }
    const size_t known = taps_.size();
    const int64_t first = row0 * p_.w, pixels = (row1 - row0) * p_.w;
    std::fill_n(dx, pixels, 0.f);
    const int64_t last = p_.last_window(row1);
    for (int64_t o = p_.first_window(row0); o < last; ++o) {
      const int64_t base = (o * p_.sh - p_.ph) * p_.w - p_.pw - first;
      const Offset* f = offsets + o * p_.ow;
      for (int64_t q = 0; q < p_.ow; q += kLanes) {
        const int64_t from = o * p_.ow + q;  // whole blocks as long as the plane has them
        load<Isa>(grad + from, grads_.data() + q,
                  from + kLanes <= p_.oh * p_.ow ? kLanes : std::min(kLanes, p_.ow - q));
      }
      for (int64_t q = 0; q < p_.ow; ++q) {
        // A marker's entry leads outside, and so does whatever else is no position.
        const auto position = static_cast<std::make_unsigned_t<Offset>>(f[q]);
        const int64_t tap = sizeof(Offset) == 1 || position < known ? taps_[position] : kOutside;
        const int64_t at = base + q * p_.sw + tap;
        if (static_cast<uint64_t>(at) < static_cast<uint64_t>(pixels)) dx[at] += grads_[q];
      }
    }
  }

  struct Window {
    int64_t q, s;
  };

  PoolParams p_;
  std::vector<Window> windows_;
  std::vector<int64_t> starts_;
  std::vector<float> grads_, sums_;
  std::vector<int64_t> taps_;
};

}  // namespace cnnkernels
