// Max-pooling of a few planes or rows on the CPU: what the pooling op and its fusion with LRN
// share. One object per thread holds the buffers; Isa is with_isa's.
#pragma once

#include "common/cpu_pool_loops.h"

namespace cnnkernels {

class Pool {
 public:
  explicit Pool(const PoolParams& p) : p_(p), taps_(std::max(p.kh, p.kw)) {}

  // Output rows [o0, o1) of one NCHW plane whose input row `row0` is at x; offsets may be null. In
  // strips of rows that fit into the L1 cache, three steps: rows are split into one array of floats
  // for each residue of the stride, so that all windows' taps are contiguous; each row's windows
  // are reduced along the width; each output row reduces kh of those. Taking rows by the scan's
  // rule gives the scan's result.
  template <class Isa, class T, class Offset>
  CNNKERNELS_INLINE void plane(const T* x, int64_t row0, int64_t o0, int64_t o1, T* out,
                               Offset* offsets) {
    if (offsets)
      plane<Isa, true>(x, row0, o0, o1, out, offsets);
    else
      plane<Isa, false>(x, row0, o0, o1, out, offsets);
  }

  // Output rows [o0, o1) of one NHWC image whose input row `row0` is at x.
  template <class Isa, class T, class Offset>
  CNNKERNELS_INLINE void image(const T* x, int64_t row0, int64_t channels, int64_t o0, int64_t o1,
                               T* out, Offset* offsets) {
    PoolTaps<T> taps(p_.taps());
    for (int64_t o = o0; o < o1; ++o)
      for (int64_t q = 0; q < p_.ow; ++q, out += channels, offsets += offsets ? channels : 0) {
        taps.count = 0;
        for (int64_t r = 0; r < p_.kh; ++r) {
          const int64_t row = o * p_.sh - p_.ph + r * p_.dh;
          if (row < 0 || row >= p_.h) continue;
          for (int64_t s = 0; s < p_.kw; ++s) {
            const int64_t column = q * p_.sw - p_.pw + s * p_.dw;
            if (column < 0 || column >= p_.w) continue;
            taps.add(x + ((row - row0) * p_.w + column) * channels, r * p_.kw + s);
          }
        }
        if (taps.count > 0) {
          offsets ? pixel<Isa, true>(taps, channels, out, offsets)
                  : pixel<Isa, false>(taps, channels, out, offsets);
          continue;
        }
        std::fill_n(out, channels, from_f32<T>(p_.relu ? 0.f : kLowest));
        if (offsets) std::fill_n(offsets, channels, kNoOffset<Offset>);
      }
  }

 private:
  template <class Isa, bool kTrack, class T, class Offset>
  CNNKERNELS_INLINE void pixel(const PoolTaps<T>& taps, int64_t channels, T* out, Offset* offsets) {
    for_channels<4, 9>(channels, taps.count, [&](auto known) CNNKERNELS_LAMBDA {
      return [=, relu = p_.relu, taps = LocalPoolTaps<known.value, T>(taps)](int64_t i, int64_t n)
                 CNNKERNELS_LAMBDA {
                   float best[kLanes];
                   int32_t at[kLanes];
                   std::fill_n(at, kLanes, taps.labels[0]);
                   pool_reduce<known.value, kTrack, false, Isa>(taps, i, n, best, at);
                   pool_finish<Isa>(best, at, relu, out + i, kTrack ? offsets + i : nullptr, n);
                 };
    });
  }

  template <class Isa, bool kTrack, class T, class Offset>
  CNNKERNELS_INLINE void plane(const T* x, int64_t row0, int64_t o0, int64_t o1, T* out,
                               Offset* offsets) {
    start_plane(kTrack);
    // Whole blocks are read and written as long as they end inside these rows.
    const T* x_end = x + (p_.last_row(o1) - row0) * p_.w;
    const T* out_end = out + (o1 - o0) * p_.ow;
    float best[kLanes];
    int32_t at[kLanes];
    for (int64_t first = o0; first < o1; first += strip_) {
      const int64_t last = std::min(o1, first + strip_);
      const int64_t r0 = p_.first_row(first), rows = p_.last_row(last) - r0;
      for (int64_t r = 0; r < rows; ++r)
        split<Isa>(x + (r0 + r - row0) * p_.w, x_end, phases_.data() + r * p_.sw * phase_);
      for (int64_t r = 0; r < rows; ++r) {
        taps_.count = 0;
        for (int64_t s = 0; s < p_.kw; ++s)
          taps_.add(phases_.data() + r * p_.sw * phase_ + tap_at_[s], s);
        with_count<2, 3>(p_.kw, [&](auto known) CNNKERNELS_LAMBDA {
          const LocalPoolTaps<known.value, float> taps(taps_);
          for (int64_t i = 0; i < row_; i += kLanes) {
            if (kTrack) std::copy_n(first_tap_.data() + i, kLanes, at);
            pool_reduce<known.value, kTrack, false, Isa>(taps, i, kLanes, best, at);
            std::copy_n(best, kLanes, row_values_.data() + r * row_ + i);
            if (kTrack) std::copy_n(at, kLanes, row_positions_.data() + r * row_ + i);
          }
        });
      }
      for (int64_t o = first; o < last; ++o, out += p_.ow, offsets += kTrack ? p_.ow : 0) {
        taps_.count = 0;
        for (int64_t k = 0; k < p_.kh; ++k) {
          const int64_t row = o * p_.sh - p_.ph + k * p_.dh, at_row = (row - r0) * row_;
          if (row >= 0 && row < p_.h)
            taps_.add(row_values_.data() + at_row, k * p_.kw, row_positions_.data() + at_row);
        }
        const bool none = taps_.count == 0;
        if (none) taps_.add(lowest_.data(), 0, first_tap_.data());
        with_count<2, 3>(taps_.count, [&](auto known) CNNKERNELS_LAMBDA {
          const LocalPoolTaps<known.value, float> taps(taps_);
          for (int64_t i = 0; i < p_.ow; i += kLanes) {
            if (kTrack)
              for (int e = 0; e < kLanes; ++e) at[e] = taps.labels[0] + taps.positions[0][i + e];
            pool_reduce<known.value, kTrack, true, Isa>(taps, i, kLanes, best, at);
            const int64_t n = out + i + kLanes <= out_end ? kLanes : std::min(kLanes, p_.ow - i);
            pool_finish<Isa>(best, at, p_.relu, out + i, kTrack ? offsets + i : nullptr, n);
          }
        });
        if (kTrack && (none || some_outside_))
          for (int64_t i = 0; i < p_.ow; ++i)
            if (none || !inside_[i]) offsets[i] = kNoOffset<Offset>;
      }
    }
  }

  void start_plane(bool track) {
    if (strip_ > 0) return;
    row_ = padded_to_lanes(p_.ow);
    // Room for a whole last block, of the reading and of the taps.
    phase_ = std::max(row_ + (p_.kw - 1) * p_.dw / p_.sw + 1,
                      padded_to_lanes(p_.w / p_.sw + 1) + p_.pw / p_.sw + 2 * kLanes);
    const int64_t overlap = (p_.kh - 1) * p_.dh + 1;
    const int64_t fit = 8192 / (p_.sw * phase_ + row_);  // 32 KiB
    strip_ = std::clamp<int64_t>((fit - overlap) / p_.sh + 1, 1, p_.oh);
    const int64_t rows = (strip_ - 1) * p_.sh + overlap;
    phases_.assign(rows * p_.sw * phase_, kLowest);
    row_values_.resize(rows * row_);
    lowest_.assign(row_, kLowest);
    for (int64_t s = 0; s < p_.kw; ++s)
      tap_at_.push_back(s * p_.dw % p_.sw * phase_ + s * p_.dw / p_.sw);
    if (!track) return;
    row_positions_.resize(rows * row_);
    first_tap_.resize(row_);
    inside_.resize(p_.ow);
    for (int64_t q = 0; q < p_.ow; ++q) {
      const int64_t left = q * p_.sw - p_.pw;
      const int64_t s = left < 0 ? (-left + p_.dw - 1) / p_.dw : 0;
      first_tap_[q] = static_cast<int32_t>(s);
      inside_[q] = s < p_.kw && left + s * p_.dw < p_.w;
      some_outside_ |= !inside_[q];
    }
  }

  // x's row as sw arrays: element i of phase b is column i * sw + b - pw. Padding keeps -inf; a
  // last block's surplus gets it back.
  template <class Isa, class T>
  CNNKERNELS_INLINE void split(const T* x, const T* x_end, float* phases) {
    const auto read = [&](int64_t i, float* v) CNNKERNELS_LAMBDA {
      load<Isa>(x + i, v,
                x + i + kLanes <= x_end ? kLanes : std::clamp<int64_t>(p_.w - i, 0, kLanes));
    };
    if (p_.sw == 1) {
      float* to = phases + p_.pw;
      for (int64_t i = 0; i < p_.w; i += kLanes) read(i, to + i);
      std::fill_n(to + p_.w, kLanes, kLowest);
      return;
    }
    if (p_.sw == 2) {
      // Column 0 is element pw / 2 of the even phase if pw is even, else of the odd one.
      float* even = phases + p_.pw % 2 * phase_ + p_.pw / 2;
      float* odd = phases + (1 - p_.pw % 2) * phase_ + (p_.pw + 1) / 2;
      for (int64_t i = 0; i < p_.w; i += 2 * kLanes) {
        float v[2 * kLanes];
        read(i, v);
        read(i + kLanes, v + kLanes);
        Isa::split(v, even + i / 2, odd + i / 2);
      }
      std::fill_n(even + (p_.w + 1) / 2, kLanes, kLowest);
      std::fill_n(odd + p_.w / 2, kLanes, kLowest);
      return;
    }
    for (int64_t column = 0; column < p_.w; ++column) {
      const int64_t at = column + p_.pw, i = at / p_.sw;
      phases[at % p_.sw * phase_ + i] = to_f32(x[column]);
    }
  }

  PoolParams p_;
  PoolTaps<float> taps_;
  int64_t row_ = 0;    // ow, padded to lanes
  int64_t phase_ = 0;  // elements of one row's residue
  int64_t strip_ = 0;  // output rows at a time
  bool some_outside_ = false;
  std::vector<float> phases_, row_values_, lowest_;
  std::vector<int32_t> row_positions_, first_tap_;
  std::vector<char> inside_;
  std::vector<int64_t> tap_at_;  // in a row's phases
};

}  // namespace cnnkernels
