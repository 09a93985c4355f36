// Max-pooling windows on the CPU: geometry, and the loops that the pooling op and its fusion with
// LRN share. Scan order, ties and NaN are torch's: over the window's rows then columns, a tap is
// taken if it is greater than the best so far or NaN, so the first maximum and the last NaN win.
#pragma once

#include <vector>

#include "common/cpu_math.h"

namespace cnnkernels {

struct PoolParams {
  int64_t h, w, oh, ow;  // one plane's input and output
  int64_t kh, kw, sh, sw, ph, pw, dh, dw;
  bool relu;
  int64_t taps() const { return kh * kw; }
  // Windows [first, last) along the height that touch input rows [row0, row1).
  int64_t first_window(int64_t row0) const {
    const int64_t reach = row0 + ph - (kh - 1) * dh;
    return reach <= 0 ? 0 : (reach + sh - 1) / sh;
  }
  int64_t last_window(int64_t row1) const { return std::min(oh, (row1 - 1 + ph) / sh + 1); }
  // Input rows [first, last) that windows [o0, o1) read, clipped.
  int64_t first_row(int64_t o0) const { return std::max<int64_t>(0, o0 * sh - ph); }
  int64_t last_row(int64_t o1) const { return std::min(h, (o1 - 1) * sh - ph + (kh - 1) * dh + 1); }
};

// "No gradient": no tap inside, or stopped by the ReLU.
template <class Offset>
constexpr Offset kNoOffset = static_cast<Offset>(-1);

inline int64_t pool_output_size(int64_t size, int64_t k, int64_t s, int64_t p, int64_t d,
                                bool ceil_mode) {
  const int64_t span = size + 2 * p - d * (k - 1) - 1 + (ceil_mode ? s - 1 : 0);
  int64_t out = (span >= 0 ? span / s : -1) + 1;
  if (ceil_mode && (out - 1) * s >= size + p) --out;
  return out;
}

inline PoolParams pool_params(const Tensor& x, const Ints& kernel, const Ints& stride,
                              const Ints& padding, const Ints& dilation, bool ceil_mode,
                              bool relu) {
  for (const Ints* pair : {&kernel, &stride, &padding, &dilation})
    STD_TORCH_CHECK(pair->size() == 2, "kernel, stride, padding and dilation must be pairs");
  for (int i = 0; i < 2; ++i) {
    STD_TORCH_CHECK(kernel[i] >= 1 && stride[i] >= 1 && dilation[i] >= 1,
                    "kernel, stride and dilation must be at least 1");
    STD_TORCH_CHECK(padding[i] >= 0 && padding[i] <= kernel[i] / 2, "padding is ", padding[i],
                    "; it must be between 0 and half of the kernel, ", kernel[i] / 2);
  }
  STD_TORCH_CHECK(kernel[0] <= INT32_MAX / kernel[1], "kernel has more than 2^31 taps");
  PoolParams p{x.size(2), x.size(3),  0,          0,           kernel[0],   kernel[1], stride[0],
               stride[1], padding[0], padding[1], dilation[0], dilation[1], relu};
  p.oh = pool_output_size(p.h, p.kh, p.sh, p.ph, p.dh, ceil_mode);
  p.ow = pool_output_size(p.w, p.kw, p.sw, p.pw, p.dw, ceil_mode);
  STD_TORCH_CHECK(p.oh >= 1 && p.ow >= 1, "x is ", to_string(x), "; the output would be ", p.oh,
                  "x", p.ow);
  return p;
}

// The windows of a backward pass, of which `offsets` shows how many there were.
inline PoolParams pool_params_of_backward(const Tensor& x, const Tensor& offsets,
                                          const Ints& kernel, const Ints& stride,
                                          const Ints& padding, const Ints& dilation) {
  PoolParams p = pool_params(x, kernel, stride, padding, dilation, /*ceil_mode=*/true, false);
  const bool fits = offsets.dim() == 4 && offsets.size(0) == x.size(0) &&
                    offsets.size(1) == x.size(1) && offsets.size(2) <= p.oh &&
                    offsets.size(3) <= p.ow;
  STD_TORCH_CHECK(fits, "offsets are ", to_string(offsets), " for an input of ", to_string(x));
  p.oh = offsets.size(2), p.ow = offsets.size(3);
  const ScalarType type = p.taps() <= 255 ? ScalarType::Byte : ScalarType::Int;
  STD_TORCH_CHECK(offsets.scalar_type() == type,
                  "offsets must be uint8 up to 255 taps and int32 above");
  return p;
}

// --- loops over flat arrays, inlined into the cloned functions below
// ------------------------------

// Lengths are multiples of kLanes: rows are short, and a vector loop's remainder would cost more
// than the loop. Buffers are padded to it.
constexpr int64_t kLanes = 16;
constexpr int64_t padded_to_lanes(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Calls block(first) for each block of kLanes elements.
template <class F>
CNNKERNELS_INLINE void for_lanes(int64_t n, const F& block) {
  for (int64_t first = 0; first < n; first += kLanes) block(first);
}

constexpr float kLowest = -std::numeric_limits<float>::infinity();

// even[i] = x[2i], odd[i] = x[2i + 1]; past x's n elements, -inf up to a whole block.
template <class T>
CNNKERNELS_INLINE void pool_split_two(const T* x, int64_t n, float* __restrict even,
                                      float* __restrict odd) {
  const auto block = [](const T* from, float* __restrict e, float* __restrict o)
                         __attribute__((always_inline)) {
                           for (int i = 0; i < kLanes; ++i) {
                             e[i] = to_f32(from[2 * i]);
                             o[i] = to_f32(from[2 * i + 1]);
                           }
                         };
  int64_t i = 0;
  for (; 2 * (i + kLanes) <= n; i += kLanes) block(x + 2 * i, even + i, odd + i);
  if (2 * i == n) return;
  T rest[2 * kLanes];
  std::fill_n(rest, 2 * kLanes, from_f32<T>(kLowest));
  std::memcpy(rest, x + 2 * i, (n - 2 * i) * sizeof(T));
  block(rest, even + i, odd + i);
}

// out[i] = x[i]; past x's n elements, -inf up to a whole block.
template <class T>
CNNKERNELS_INLINE void pool_convert(const T* x, int64_t n, float* __restrict out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int e = 0; e < kLanes; ++e) out[i + e] = to_f32(x[i + e]);
  if (i == n) return;
  T rest[kLanes];
  std::fill_n(rest, kLanes, from_f32<T>(kLowest));
  std::memcpy(rest, x + i, (n - i) * sizeof(T));
  for (int e = 0; e < kLanes; ++e) out[i + e] = to_f32(rest[e]);
}

// best = max(best, tap) by the scan's rule.
CNNKERNELS_INLINE void pool_take(const float* tap, float* __restrict best, int64_t n) {
  for_lanes(n, [&](int64_t first) __attribute__((always_inline)) {
    for (int64_t i = first; i < first + kLanes; ++i) {
      const float v = tap[i], b = best[i];
      best[i] = (v > b) | (v != v) ? v : b;
    }
  });
}

// Where taken, position = label + tap_position (0 if null).
CNNKERNELS_INLINE void pool_take_label(const float* tap, const int32_t* tap_position, int32_t label,
                                       float* __restrict best, int32_t* __restrict position,
                                       int64_t n) {
  for_lanes(n, [&](int64_t first) __attribute__((always_inline)) {
    for (int64_t i = first; i < first + kLanes; ++i) {
      const float v = tap[i], b = best[i];
      const bool take = (v > b) | (v != v);
      best[i] = take ? v : b;
      const int32_t at = tap_position ? label + tap_position[i] : label;
      position[i] = take ? at : position[i];
    }
  });
}

// best = the winner of kTaps taps, with labels 0 ... kTaps - 1 if position is not null: the common
// windows, without the arrays in between. `position` holds the first valid label before.
template <int kTaps, bool kTrack>
CNNKERNELS_INLINE void pool_take_all(const float* const* taps, float* __restrict best,
                                     int32_t* __restrict position, int64_t n) {
  const float* tap[kTaps];
  for (int t = 0; t < kTaps; ++t) tap[t] = taps[t];
  for_lanes(n, [&](int64_t first) __attribute__((always_inline)) {
    for (int64_t i = first; i < first + kLanes; ++i) {
      float m = kLowest;
      int32_t at = kTrack ? position[i] : 0;
#pragma GCC unroll 4
      for (int t = 0; t < kTaps; ++t) {
        const float v = tap[t][i];
        const bool take = (v > m) | (v != v);
        m = take ? v : m;
        at = take ? t : at;
      }
      best[i] = m;
      if (kTrack) position[i] = at;
    }
  });
}

// Results of n windows in T, after the ReLU if asked; position may be null. n need not be a
// multiple of kLanes, the buffers are.
template <class T, class Offset>
CNNKERNELS_INLINE void pool_store(const float* best, const int32_t* position, bool relu, T* out,
                                  Offset* offsets, int64_t n) {
  const float floor = relu ? 0.f : kLowest;
  T values[kLanes];
  Offset places[kLanes];
  for_lanes(n, [&](int64_t first) __attribute__((always_inline)) {
    const float* from = best + first;
    const int64_t count = std::min(kLanes, n - first);
    for (int i = 0; i < kLanes; ++i) values[i] = from_f32<T>(from[i] <= floor ? floor : from[i]);
    std::memcpy(out + first, values, count * sizeof(T));
    if (!position) return;
    for (int i = 0; i < kLanes; ++i)
      places[i] =
          relu & (from[i] <= floor) ? kNoOffset<Offset> : static_cast<Offset>(position[first + i]);
    std::memcpy(offsets + first, places, count * sizeof(Offset));
  });
}

// `kTaps` taps (0: `count`) of one output pixel in NHWC, all inside the input.
template <int kTaps, bool kTrack, class T, class Offset>
CNNKERNELS_INLINE void pool_pixel(const T* const* taps, const int32_t* labels, int64_t count,
                                  int64_t channels, bool relu, T* __restrict out,
                                  Offset* __restrict offsets) {
  const float floor = relu ? 0.f : -std::numeric_limits<float>::infinity();
  if constexpr (kTaps > 0) {
    // Everything in registers: one pass over the channels.
    const T* tap[kTaps];
    int32_t label[kTaps];
    for (int t = 0; t < kTaps; ++t) tap[t] = taps[t], label[t] = labels[t];
    for (int64_t i = 0; i < channels; ++i) {
      float best = to_f32(tap[0][i]);
      int32_t position = label[0];
#pragma GCC unroll 9
      for (int t = 1; t < kTaps; ++t) {
        const float v = to_f32(tap[t][i]);
        const bool take = (v > best) | (v != v);
        best = take ? v : best;
        position = take ? label[t] : position;
      }
      const bool stop = best <= floor;
      out[i] = from_f32<T>(stop ? floor : best);
      if (kTrack) offsets[i] = relu && stop ? kNoOffset<Offset> : static_cast<Offset>(position);
    }
    return;
  }
  constexpr int64_t kBlock = 64;
  float best[kBlock], value[kBlock];
  int32_t position[kBlock];
  for (int64_t c = 0; c < channels; c += kBlock) {
    const int64_t n = std::min(kBlock, channels - c), padded = padded_to_lanes(n);
    pool_convert(taps[0] + c, n, best);
    if (kTrack) std::fill_n(position, padded, labels[0]);
    for (int64_t t = 1; t < count; ++t) {
      pool_convert(taps[t] + c, n, value);
      if (kTrack)
        pool_take_label(value, nullptr, labels[t], best, position, padded);
      else
        pool_take(value, best, padded);
    }
    pool_store<T, Offset>(best, kTrack ? position : nullptr, relu, out + c,
                          kTrack ? offsets + c : offsets, n);
  }
}

// sum += grad where the window's position is this tap's
template <class G, class Offset>
CNNKERNELS_INLINE void pool_gather(const G* __restrict grad, const Offset* __restrict offsets,
                                   Offset label, float* __restrict sum, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += offsets[i] == label ? to_f32(grad[i]) : 0.f;
}

template <class T>
CNNKERNELS_CLONES void pool_round(const float* x, T* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = from_f32<T>(x[i]);
}

// --- one thread's buffers and loops --------------------------------------------------------------

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
