// Max-pooling windows on the CPU: geometry and flat loops, for common/cpu_pool.h. Scan order, ties
// and NaN are torch's: over the window's rows then columns, a tap is taken if it is greater than
// the best so far or NaN, so the first maximum and the last NaN win.
#pragma once

#include "common/cpu_isa.h"

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

}  // namespace cnnkernels
