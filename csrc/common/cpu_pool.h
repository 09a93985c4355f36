// Max-pooling of a few planes or rows on the CPU, forward and backward: what the pooling op and its
// fusion with LRN share. One object per thread holds the buffers.
#pragma once

#include <vector>

#include "common/cpu_pool_loops.h"

namespace cnnkernels {

class Pool {
 public:
  explicit Pool(const PoolParams& p) : p_(p) {}

  // Output rows [o0, o1) of one NCHW plane whose input row `row0` is at x; offsets may be null.
  // Each input row's windows are reduced along the width once, into a ring of rows; an output row
  // then reduces kh of those. Taking rows by the scan's rule gives the scan's result.
  template <class T, class Offset>
  CNNKERNELS_CLONES void plane(const T* x, int64_t row0, int64_t o0, int64_t o1, T* out,
                               Offset* offsets) {
    const bool track = offsets != nullptr;
    start_plane(track);
    for (int64_t o = o0; o < o1; ++o, out += p_.ow) {
      const int64_t top = o * p_.sh - p_.ph;
      const int64_t k0 = top < 0 ? (-top + p_.dh - 1) / p_.dh : 0;
      std::fill(best_.begin(), best_.end(), kLowest);
      if (track)
        for (int64_t i = 0; i < row_; ++i)
          position_[i] = static_cast<int32_t>(k0 * p_.kw) + first_tap_[i];
      int64_t k1 = k0;
      for (; k1 < p_.kh && top + k1 * p_.dh < p_.h; ++k1) {
        const int64_t row = top + k1 * p_.dh;
        const int64_t slot = reduced_row(x + (row - row0) * p_.w, row, track);
        const float* values = row_values_.data() + slot * row_;
        if (track)
          pool_take_label(values, row_positions_.data() + slot * row_,
                          static_cast<int32_t>(k1 * p_.kw), best_.data(), position_.data(), row_);
        else
          pool_take(values, best_.data(), row_);
      }
      pool_store<T, Offset>(best_.data(), track ? position_.data() : nullptr, p_.relu, out, offsets,
                            p_.ow);
      if (!track) continue;
      if (k1 == k0 || some_outside_)
        for (int64_t i = 0; i < p_.ow; ++i)
          if (k1 == k0 || !inside_[i]) offsets[i] = kNoOffset<Offset>;
      offsets += p_.ow;
    }
  }

  // Output rows [o0, o1) of one NHWC image whose input row `row0` is at x.
  template <class T, class Offset>
  CNNKERNELS_CLONES void image(const T* x, int64_t row0, int64_t channels, int64_t o0, int64_t o1,
                               T* out, Offset* offsets) {
    std::vector<const T*> taps(p_.taps());
    labels_.resize(p_.taps());
    for (int64_t o = o0; o < o1; ++o)
      for (int64_t q = 0; q < p_.ow; ++q, out += channels, offsets += offsets ? channels : 0) {
        int64_t count = 0;
        for (int64_t r = 0; r < p_.kh; ++r) {
          const int64_t row = o * p_.sh - p_.ph + r * p_.dh;
          if (row < 0 || row >= p_.h) continue;
          for (int64_t s = 0; s < p_.kw; ++s) {
            const int64_t column = q * p_.sw - p_.pw + s * p_.dw;
            if (column < 0 || column >= p_.w) continue;
            taps[count] = x + ((row - row0) * p_.w + column) * channels;
            labels_[count++] = static_cast<int32_t>(r * p_.kw + s);
          }
        }
        if (count > 0) {
          pixel(taps.data(), count, channels, out, offsets);
          continue;
        }
        std::fill_n(out, channels, from_f32<T>(p_.relu ? 0.f : kLowest));
        if (offsets) std::fill_n(offsets, channels, kNoOffset<Offset>);
      }
  }

  // Gradient of input rows [row0, row1) of one NCHW plane, in fp32; grad and offsets of the whole
  // plane. Windows are added in ascending order.
  template <class G, class Offset>
  CNNKERNELS_CLONES void plane_backward(const G* grad, const Offset* offsets, int64_t row0,
                                        int64_t row1, float* dx) {
    start_backward();
    const size_t known = tap_offsets_.size();
    const int64_t first = row0 * p_.w, pixels = (row1 - row0) * p_.w;
    std::fill_n(dx, pixels, 0.f);
    const int64_t last = p_.last_window(row1);
    for (int64_t o = p_.first_window(row0); o < last; ++o) {
      const int64_t base = (o * p_.sh - p_.ph) * p_.w - p_.pw - first;
      const G* g = grad + o * p_.ow;
      const Offset* f = offsets + o * p_.ow;
      for (int64_t q = 0; q < p_.ow; ++q) {
        // A marker's entry leads outside, and so does whatever else is no position.
        const auto position = static_cast<std::make_unsigned_t<Offset>>(f[q]);
        const int64_t tap =
            sizeof(Offset) == 1 || position < known ? tap_offsets_[position] : kOutside;
        const int64_t at = base + q * p_.sw + tap;
        if (static_cast<uint64_t>(at) < static_cast<uint64_t>(pixels)) dx[at] += to_f32(g[q]);
      }
    }
  }

  // Gradient of input row `row` of one NHWC image: dx [w * channels], in fp32.
  template <class G, class Offset>
  CNNKERNELS_CLONES void image_row_backward(const G* grad, const Offset* offsets, int64_t channels,
                                            int64_t row, float* dx) {
    std::fill_n(dx, p_.w * channels, 0.f);
    const int64_t last = p_.last_window(row + 1);
    for (int64_t o = p_.first_window(row); o < last; ++o) {
      const int64_t r = row + p_.ph - o * p_.sh;
      if (r % p_.dh != 0) continue;
      for (int64_t q = 0; q < p_.ow; ++q)
        for (int64_t s = 0; s < p_.kw; ++s) {
          const int64_t column = q * p_.sw - p_.pw + s * p_.dw;
          if (column < 0 || column >= p_.w) continue;
          const int64_t at = (o * p_.ow + q) * channels;
          pool_gather(grad + at, offsets + at, static_cast<Offset>(r / p_.dh * p_.kw + s),
                      dx + column * channels, channels);
        }
    }
  }

 private:
  static constexpr int64_t kOutside = INT64_MIN / 4;

  template <class T, class Offset>
  CNNKERNELS_INLINE void pixel(const T* const* taps, int64_t count, int64_t channels, T* out,
                               Offset* offsets) {
    const auto run = [&](auto taps_known, auto track) __attribute__((always_inline)) {
      pool_pixel<decltype(taps_known)::value, decltype(track)::value>(
          taps, labels_.data(), count, channels, p_.relu, out, offsets);
    };
    const auto known = [&](auto track) __attribute__((always_inline)) {
      if (count == 9) return run(std::integral_constant<int, 9>{}, track);
      if (count == 4) return run(std::integral_constant<int, 4>{}, track);
      run(std::integral_constant<int, 0>{}, track);
    };
    offsets ? known(std::true_type{}) : known(std::false_type{});
  }

  void start_plane(bool track) {
    const int64_t rows = (p_.kh - 1) * p_.dh + 1;
    if (row_tags_.empty()) {
      row_ = padded_to_lanes(p_.ow);
      row_values_.resize(rows * row_);
      best_.resize(row_);
      // Tap s of window q is element q + s*dw/sw of phase s*dw%sw of the padded row.
      // Room for a whole last block, of the reading and of the taps.
      phase_length_ = std::max(row_ + (p_.kw - 1) * p_.dw / p_.sw + 1,
                               padded_to_lanes(p_.w / p_.sw + 1) + p_.pw / p_.sw + kLanes);
      phases_.assign(p_.sw * phase_length_, kLowest);
      if (track) {
        row_positions_.resize(rows * row_);
        position_.resize(row_);
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
    }
    row_tags_.assign(rows, -1);
  }

  // The ring's slot of input row `row` (at x), reduced along the width.
  template <class T>
  CNNKERNELS_INLINE int64_t reduced_row(const T* x, int64_t row, bool track) {
    const int64_t slot = row % static_cast<int64_t>(row_tags_.size());
    if (row_tags_[slot] == row) return slot;
    row_tags_[slot] = row;
    split(x);
    float* values = row_values_.data() + slot * row_;
    int32_t* positions = track ? row_positions_.data() + slot * row_ : nullptr;
    if (track) std::copy(first_tap_.begin(), first_tap_.end(), positions);
    if (p_.kw == 3 || p_.kw == 2) {
      const float* taps[] = {tap(0), tap(1), tap(p_.kw - 1)};
      if (p_.kw == 3)
        track ? pool_take_all<3, true>(taps, values, positions, row_)
              : pool_take_all<3, false>(taps, values, positions, row_);
      else
        track ? pool_take_all<2, true>(taps, values, positions, row_)
              : pool_take_all<2, false>(taps, values, positions, row_);
      return slot;
    }
    std::fill_n(values, row_, kLowest);
    for (int64_t s = 0; s < p_.kw; ++s)
      if (track)
        pool_take_label(tap(s), nullptr, static_cast<int32_t>(s), values, positions, row_);
      else
        pool_take(tap(s), values, row_);
    return slot;
  }

  const float* tap(int64_t s) const {
    return phases_.data() + s * p_.dw % p_.sw * phase_length_ + s * p_.dw / p_.sw;
  }

  // x's row as sw arrays: element i of phase b is column i * sw + b - pw. Padding keeps -inf.
  template <class T>
  CNNKERNELS_INLINE void split(const T* x) {
    float* phases = phases_.data();
    if (p_.sw == 1) return pool_convert(x, p_.w, phases + p_.pw);
    if (p_.sw == 2) {
      // Column 0 is element pw / 2 of the even phase if pw is even, else of the odd one.
      float* even = phases + (p_.pw % 2) * phase_length_ + p_.pw / 2;
      float* odd = phases + (1 - p_.pw % 2) * phase_length_ + (p_.pw + 1) / 2;
      return pool_split_two(x, p_.w, even, odd);
    }
    for (int64_t column = 0; column < p_.w; ++column) {
      const int64_t at = column + p_.pw, i = at / p_.sw;
      phases[at % p_.sw * phase_length_ + i] = to_f32(x[column]);
    }
  }

  void start_backward() {
    if (!tap_offsets_.empty()) return;
    // A whole table for one-byte positions: then the compiler drops the check of the index.
    tap_offsets_.assign(std::max<int64_t>(p_.taps(), 256), kOutside);
    for (int64_t t = 0; t < p_.taps(); ++t)
      tap_offsets_[t] = t / p_.kw * p_.dh * p_.w + t % p_.kw * p_.dw;
  }

  PoolParams p_;
  int64_t row_ = 0;  // ow, padded to lanes
  int64_t phase_length_ = 0;
  bool some_outside_ = false;
  std::vector<float> phases_, row_values_, best_;
  std::vector<int32_t> row_positions_, position_, first_tap_, labels_;
  std::vector<char> inside_;
  std::vector<int64_t> row_tags_, tap_offsets_;
};

}  // namespace cnnkernels
