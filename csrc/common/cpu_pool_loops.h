// Max-pooling windows on the CPU: geometry and flat loops, for common/cpu_pool.h. Scan order, ties
// and NaN are torch's: over the window's rows then columns, a tap is taken if it is greater than
// the best so far or NaN, so the first maximum and the last NaN win.
#pragma once

#include <vector>

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

// --- one block of kLanes windows or pixels: inlined, everything in registers -----------------

constexpr float kLowest = -std::numeric_limits<float>::infinity();

constexpr int64_t padded_to_lanes(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// f(n as a constant) for the common numbers of taps, f(0) for the others.
template <int... kCommon, class F>
CNNKERNELS_INLINE void with_count(int64_t n, const F& f) {
  if (((n == kCommon && (f(std::integral_constant<int, kCommon>{}), true)) || ...)) return;
  f(std::integral_constant<int, 0>{});
}

// The taps of a block: element i of tap t is at values[t] + i and has the label labels[t], plus
// positions[t][i] where rows with positions are reduced.
template <class T>
struct PoolTaps {
  std::vector<const T*> values;
  std::vector<const int32_t*> positions;
  std::vector<int32_t> labels;
  int64_t count = 0;
  explicit PoolTaps(int64_t most) : values(most), positions(most), labels(most) {}
  void add(const T* value, int64_t label, const int32_t* position = nullptr) {
    values[count] = value, positions[count] = position;
    labels[count++] = static_cast<int32_t>(label);
  }
};

// Element t of a vector, the first kCount of them kept in registers.
template <int kCount, class E>
struct First {
  E first[kCount];
  CNNKERNELS_INLINE explicit First(const std::vector<E>& v) {
    for (int t = 0; t < kCount; ++t) first[t] = v[t];
  }
  CNNKERNELS_INLINE E operator[](int64_t t) const { return first[t]; }
};
template <class E>
struct First<0, E> {
  const E* all;
  CNNKERNELS_INLINE explicit First(const std::vector<E>& v) : all(v.data()) {}
  CNNKERNELS_INLINE E operator[](int64_t t) const { return all[t]; }
};

template <int kTaps, class T>
struct LocalPoolTaps {
  First<kTaps, const T*> values;
  First<kTaps, const int32_t*> positions;
  First<kTaps, int32_t> labels;
  int64_t count;
  CNNKERNELS_INLINE explicit LocalPoolTaps(const PoolTaps<T>& t)
      : values(t.values), positions(t.positions), labels(t.labels), count(t.count) {}
};

// best, at = value and label of the winners of windows [i, i + n). `at` comes in as the label of
// the first tap, which is also that of a window of -inf alone. kTaps 0: taps.count.
template <int kTaps, bool kTrack, bool kRows, class Isa, class Taps>
CNNKERNELS_INLINE void pool_reduce(const Taps& taps, int64_t i, int64_t n, float* best,
                                   int32_t* at) {
  load<Isa>(taps.values[0] + i, best, n);
#pragma GCC unroll 9
  for (int64_t t = 1; t < (kTaps ? kTaps : taps.count); ++t) {
    float v[kLanes];
    load<Isa>(taps.values[t] + i, v, n);
    if constexpr (kTrack) {
      const int32_t label = taps.labels[t], *position = kRows ? taps.positions[t] + i : nullptr;
      for (int e = 0; e < kLanes; ++e) {
        const bool take = (v[e] > best[e]) | (v[e] != v[e]);
        at[e] = take ? (kRows ? label + position[e] : label) : at[e];
      }
    }
    for (int e = 0; e < kLanes; ++e) {
      const float larger = v[e] > best[e] ? v[e] : best[e];
      best[e] = v[e] != v[e] ? v[e] : larger;
    }
  }
}

template <class Isa, class Offset>
CNNKERNELS_INLINE void store_ints(const int32_t* v, Offset* x, int64_t n) {
  if (n == kLanes) return Isa::narrow(v, x);
  for (int e = 0; e < n; ++e) x[e] = static_cast<Offset>(v[e]);
}

// n windows' results in T, after the ReLU if asked; offsets may be null.
template <class Isa, class T, class Offset>
CNNKERNELS_INLINE void pool_finish(float* best, const int32_t* at, bool relu, T* out,
                                   Offset* offsets, int64_t n) {
  const float floor = relu ? 0.f : kLowest;
  if (offsets) {
    int32_t places[kLanes];
    for (int e = 0; e < kLanes; ++e) places[e] = relu & (best[e] <= floor) ? -1 : at[e];
    store_ints<Isa>(places, offsets, n);
  }
  for (int e = 0; e < kLanes; ++e) best[e] = best[e] <= floor ? floor : best[e];
  store<Isa>(best, out, n);
}

// The windows of a block of pixels: pixel i gets grads[t][i] if its label is offsets[t][i].
template <class G, class Offset>
struct GatherTaps {
  std::vector<const G*> grads;
  std::vector<const Offset*> offsets;
  std::vector<int32_t> labels;
  int64_t count = 0;
  explicit GatherTaps(int64_t most) : grads(most), offsets(most), labels(most) {}
  void add(const G* grad, const Offset* offset, int64_t label) {
    grads[count] = grad, offsets[count] = offset;
    labels[count++] = static_cast<int32_t>(label);
  }
};

// sum = the gradients of pixels [i, i + n), in ascending order of t. kTaps 0: taps.count.
template <int kTaps, class G, class Offset>
struct LocalGatherTaps {
  using Label = Offset;
  First<kTaps, const G*> grads;
  First<kTaps, const Offset*> offsets;
  First<kTaps, int32_t> labels;
  int64_t count;
  CNNKERNELS_INLINE explicit LocalGatherTaps(const GatherTaps<G, Offset>& t)
      : grads(t.grads), offsets(t.offsets), labels(t.labels), count(t.count) {}
};

template <int kTaps, class Isa, class Taps>
CNNKERNELS_INLINE void pool_gather(const Taps& taps, int64_t i, int64_t n, float* sum) {
  using Offset = typename Taps::Label;
  for (int e = 0; e < kLanes; ++e) sum[e] = 0.f;
#pragma GCC unroll 9
  for (int64_t t = 0; t < (kTaps ? kTaps : taps.count); ++t) {
    float grad[kLanes];
    load<Isa>(taps.grads[t] + i, grad, n);
    const Offset* at = taps.offsets[t] + i;
    Offset padded[kLanes] = {};
    if (n < kLanes) at = static_cast<Offset*>(std::memcpy(padded, at, n * sizeof(Offset)));
    Isa::add_where(at, taps.labels[t], grad, sum);
  }
}

// f(number of taps, i, n) for blocks of one pixel's channels; the last one goes over some channels
// again.
template <int... kCommon, class F>
CNNKERNELS_INLINE void for_channels(int64_t channels, int64_t taps, const F& make) {
  if (channels < kLanes) return make(std::integral_constant<int, 0>{})(0, channels);
  with_count<kCommon...>(taps, [&](auto known) CNNKERNELS_LAMBDA {
    auto f = make(known);
    for (int64_t i = 0; i < channels; i += kLanes) f(std::min(i, channels - kLanes), kLanes);
  });
}

}  // namespace cnnkernels
