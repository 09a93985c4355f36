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

// --- loops over flat arrays ----------------------------------------------------------------------

// even[i] = x[2i], odd[i] = x[2i + 1]
template <class T>
CNNKERNELS_CLONES void pool_split_two(const T* x, float* even, float* odd, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    even[i] = to_f32(x[2 * i]);
    odd[i] = to_f32(x[2 * i + 1]);
  }
}

template <class T>
CNNKERNELS_CLONES void pool_convert(const T* x, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = to_f32(x[i]);
}

// best = max(best, tap) by torch's rule; where taken, position = label (+ tap_position).
CNNKERNELS_CLONES inline void pool_take(const float* __restrict tap, float* __restrict best,
                                        int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float v = tap[i], b = best[i];
    best[i] = (v > b) | (v != v) ? v : b;
  }
}
CNNKERNELS_CLONES inline void pool_take_label(const float* __restrict tap, int32_t label,
                                              float* __restrict best, int32_t* __restrict position,
                                              int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float v = tap[i], b = best[i];
    const bool take = (v > b) | (v != v);
    best[i] = take ? v : b;
    position[i] = take ? label : position[i];
  }
}
CNNKERNELS_CLONES inline void pool_take_position(const float* __restrict tap,
                                                 const int32_t* __restrict tap_position,
                                                 int32_t label, float* __restrict best,
                                                 int32_t* __restrict position, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float v = tap[i], b = best[i];
    const bool take = (v > b) | (v != v);
    best[i] = take ? v : b;
    position[i] = take ? label + tap_position[i] : position[i];
  }
}

// Two and three taps at once, which spares the array in between: the common windows' case.
CNNKERNELS_CLONES inline void pool_take_three(const float* __restrict a, const float* __restrict b,
                                              const float* __restrict c, float* __restrict best,
                                              int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    float m = a[i];
    m = (b[i] > m) | (b[i] != b[i]) ? b[i] : m;
    best[i] = (c[i] > m) | (c[i] != c[i]) ? c[i] : m;
  }
}
CNNKERNELS_CLONES inline void pool_take_two(const float* __restrict a, const float* __restrict b,
                                            float* __restrict best, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float m = a[i];
    best[i] = (b[i] > m) | (b[i] != b[i]) ? b[i] : m;
  }
}

// Results of n windows in T, after the ReLU if asked; position may be null.
template <class T, class Offset>
CNNKERNELS_CLONES void pool_store(const float* best, const int32_t* position, bool relu, T* out,
                                  Offset* offsets, int64_t n) {
  const float floor = relu ? 0.f : -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < n; ++i) out[i] = from_f32<T>(best[i] <= floor ? floor : best[i]);
  if (!position) return;
  for (int64_t i = 0; i < n; ++i)
    offsets[i] = relu && best[i] <= floor ? kNoOffset<Offset> : static_cast<Offset>(position[i]);
}

// One output pixel in NHWC: the windows of `channels` channels, whose valid taps are
// taps[0..count).
template <class T, class Offset>
CNNKERNELS_CLONES void pool_pixel(const T* const* taps, const int32_t* labels, int64_t count,
                                  int64_t channels, bool relu, T* out, Offset* offsets) {
  constexpr int64_t kBlock = 64;
  float best[kBlock];
  int32_t position[kBlock];
  const float floor = relu ? 0.f : -std::numeric_limits<float>::infinity();
  for (int64_t c = 0; c < channels; c += kBlock) {
    const int64_t n = std::min(kBlock, channels - c);
    const T* first = taps[0] + c;
    for (int64_t i = 0; i < n; ++i) best[i] = to_f32(first[i]);
    if (offsets) {
      for (int64_t i = 0; i < n; ++i) position[i] = labels[0];
      for (int64_t t = 1; t < count; ++t) {
        const T* tap = taps[t] + c;
        const int32_t label = labels[t];
        for (int64_t i = 0; i < n; ++i) {
          const float v = to_f32(tap[i]);
          const bool take = (v > best[i]) | (v != v);
          best[i] = take ? v : best[i];
          position[i] = take ? label : position[i];
        }
      }
      for (int64_t i = 0; i < n; ++i)
        offsets[c + i] =
            relu && best[i] <= floor ? kNoOffset<Offset> : static_cast<Offset>(position[i]);
    } else {
      for (int64_t t = 1; t < count; ++t) {
        const T* tap = taps[t] + c;
        for (int64_t i = 0; i < n; ++i) {
          const float v = to_f32(tap[i]);
          best[i] = (v > best[i]) | (v != v) ? v : best[i];
        }
      }
    }
    for (int64_t i = 0; i < n; ++i) out[c + i] = from_f32<T>(best[i] <= floor ? floor : best[i]);
  }
}

// sum += grad where the window's position is this tap's
template <class G, class Offset>
CNNKERNELS_CLONES void pool_gather(const G* __restrict grad, const Offset* __restrict offsets,
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
  void plane(const T* x, int64_t row0, int64_t o0, int64_t o1, T* out, Offset* offsets) {
    const bool track = offsets != nullptr;
    start_plane(track);
    for (int64_t o = o0; o < o1; ++o, out += p_.ow) {
      const int64_t top = o * p_.sh - p_.ph;
      const int64_t k0 = top < 0 ? (-top + p_.dh - 1) / p_.dh : 0;
      std::fill(best_.begin(), best_.end(), kLowest);
      if (track)
        for (int64_t i = 0; i < p_.ow; ++i)
          position_[i] = static_cast<int32_t>(k0 * p_.kw) + first_tap_[i];
      int64_t k1 = k0;
      for (; k1 < p_.kh && top + k1 * p_.dh < p_.h; ++k1) {
        const int64_t row = top + k1 * p_.dh;
        const int64_t slot = reduced_row(x + (row - row0) * p_.w, row, track);
        const float* values = row_values_.data() + slot * p_.ow;
        if (track)
          pool_take_position(values, row_positions_.data() + slot * p_.ow,
                             static_cast<int32_t>(k1 * p_.kw), best_.data(), position_.data(),
                             p_.ow);
        else
          pool_take(values, best_.data(), p_.ow);
      }
      pool_store<T, Offset>(best_.data(), track ? position_.data() : nullptr, p_.relu, out, offsets,
                            p_.ow);
      if (!track) continue;
      for (int64_t i = 0; i < p_.ow; ++i)
        if (k1 == k0 || !inside_[i]) offsets[i] = kNoOffset<Offset>;
      offsets += p_.ow;
    }
  }

  // Output rows [o0, o1) of one NHWC image whose input row `row0` is at x.
  template <class T, class Offset>
  void image(const T* x, int64_t row0, int64_t channels, int64_t o0, int64_t o1, T* out,
             Offset* offsets) {
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
          pool_pixel<T, Offset>(taps.data(), labels_.data(), count, channels, p_.relu, out,
                                offsets);
          continue;
        }
        std::fill_n(out, channels, from_f32<T>(p_.relu ? 0.f : kLowest));
        if (offsets) std::fill_n(offsets, channels, kNoOffset<Offset>);
      }
  }

  // Gradient of input rows [row0, row1) of one NCHW plane, in fp32; grad and offsets of the whole
  // plane. Windows are added in ascending order.
  template <class G, class Offset>
  void plane_backward(const G* grad, const Offset* offsets, int64_t row0, int64_t row1, float* dx) {
    start_backward();
    const int64_t first = row0 * p_.w, pixels = (row1 - row0) * p_.w;
    std::fill_n(dx, pixels, 0.f);
    const int64_t last = p_.last_window(row1);
    for (int64_t o = p_.first_window(row0); o < last; ++o) {
      const int64_t base = (o * p_.sh - p_.ph) * p_.w - p_.pw - first;
      const G* g = grad + o * p_.ow;
      const Offset* f = offsets + o * p_.ow;
      for (int64_t q = 0; q < p_.ow; ++q) {
        const int64_t position = f[q];  // the marker is outside, too: -1, or 255 with <= 255 taps
        if (position < 0 || position >= p_.taps()) continue;
        const int64_t at = base + q * p_.sw + tap_offsets_[position];
        if (at >= 0 && at < pixels) dx[at] += to_f32(g[q]);
      }
    }
  }

  // Gradient of input row `row` of one NHWC image: dx [w * channels], in fp32.
  template <class G, class Offset>
  void image_row_backward(const G* grad, const Offset* offsets, int64_t channels, int64_t row,
                          float* dx) {
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
  static constexpr float kLowest = -std::numeric_limits<float>::infinity();

  void start_plane(bool track) {
    const int64_t rows = (p_.kh - 1) * p_.dh + 1;
    if (row_tags_.empty()) {
      row_values_.resize(rows * p_.ow);
      best_.resize(p_.ow);
      // Tap s of window q is element q + s*dw/sw of phase s*dw%sw of the padded row.
      phase_length_ = p_.ow + (p_.kw - 1) * p_.dw / p_.sw + 1;
      phases_.assign(p_.sw * phase_length_, kLowest);
      if (track) {
        row_positions_.resize(rows * p_.ow);
        position_.resize(p_.ow);
        first_tap_.resize(p_.ow);
        inside_.resize(p_.ow);
        for (int64_t q = 0; q < p_.ow; ++q) {
          const int64_t left = q * p_.sw - p_.pw;
          const int64_t s = left < 0 ? (-left + p_.dw - 1) / p_.dw : 0;
          first_tap_[q] = static_cast<int32_t>(s);
          inside_[q] = s < p_.kw && left + s * p_.dw < p_.w;
        }
      }
    }
    row_tags_.assign(rows, -1);
  }

  // The ring's slot of input row `row` (at x), reduced along the width.
  template <class T>
  int64_t reduced_row(const T* x, int64_t row, bool track) {
    const int64_t slot = row % static_cast<int64_t>(row_tags_.size());
    if (row_tags_[slot] == row) return slot;
    row_tags_[slot] = row;
    split(x);
    float* values = row_values_.data() + slot * p_.ow;
    if (!track && p_.kw == 3) {
      pool_take_three(tap(0), tap(1), tap(2), values, p_.ow);
      return slot;
    }
    if (!track && p_.kw == 2) {
      pool_take_two(tap(0), tap(1), values, p_.ow);
      return slot;
    }
    std::fill_n(values, p_.ow, kLowest);
    int32_t* positions = track ? row_positions_.data() + slot * p_.ow : nullptr;
    if (track) std::copy(first_tap_.begin(), first_tap_.end(), positions);
    for (int64_t s = 0; s < p_.kw; ++s) {
      if (track)
        pool_take_label(tap(s), static_cast<int32_t>(s), values, positions, p_.ow);
      else
        pool_take(tap(s), values, p_.ow);
    }
    return slot;
  }

  const float* tap(int64_t s) const {
    return phases_.data() + s * p_.dw % p_.sw * phase_length_ + s * p_.dw / p_.sw;
  }

  // x's row as sw arrays: element i of phase b is column i * sw + b - pw. Padding keeps -inf.
  template <class T>
  void split(const T* x) {
    float* phases = phases_.data();
    if (p_.sw == 1) {
      const int64_t count = std::min(p_.w, phase_length_ - p_.pw);
      if (count > 0) pool_convert(x, phases + p_.pw, count);
      return;
    }
    if (p_.sw == 2) {
      // Column 0 is element pw / 2 of the even phase if pw is even, else of the odd one.
      float* even = phases + (p_.pw % 2) * phase_length_ + p_.pw / 2;
      float* odd = phases + (1 - p_.pw % 2) * phase_length_ + (p_.pw + 1) / 2;
      const int64_t evens = std::min((p_.w + 1) / 2, phase_length_ - p_.pw / 2);
      const int64_t odds = std::min(p_.w / 2, phase_length_ - (p_.pw + 1) / 2);
      const int64_t both = std::max<int64_t>(0, std::min(evens, odds));
      pool_split_two(x, even, odd, both);
      if (evens > both) even[both] = to_f32(x[2 * both]);
      if (odds > both) odd[both] = to_f32(x[2 * both + 1]);
      return;
    }
    for (int64_t column = 0; column < p_.w; ++column) {
      const int64_t at = column + p_.pw, i = at / p_.sw;
      if (i >= phase_length_) break;
      phases[at % p_.sw * phase_length_ + i] = to_f32(x[column]);
    }
  }

  void start_backward() {
    if (!tap_offsets_.empty()) return;
    tap_offsets_.resize(p_.taps());
    for (int64_t t = 0; t < p_.taps(); ++t)
      tap_offsets_[t] = t / p_.kw * p_.dh * p_.w + t % p_.kw * p_.dw;
  }

  PoolParams p_;
  int64_t phase_length_ = 0;
  std::vector<float> phases_, row_values_, best_;
  std::vector<int32_t> row_positions_, position_, first_tap_, labels_;
  std::vector<char> inside_;
  std::vector<int64_t> row_tags_, tap_offsets_;
};

}  // namespace cnnkernels
