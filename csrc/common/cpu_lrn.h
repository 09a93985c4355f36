// Local response normalisation of a few pixels or planes on the CPU, forward and backward: what the
// LRN op and its fusion with max-pooling share.
//
// Both layouts come down to loops over flat arrays: squares (or gradient terms) of `size`
// neighbouring channels are added, and the sum is turned into d^-beta. In NCHW the arrays are runs
// of pixels, a ring of `size` rows; in NHWC one pixel's channels, shifted, with zeros at both ends.
// fp32 tensors are summed in double, which keeps the result within 2 ulp; 16-bit tensors need fp32.
#pragma once

#include <vector>

#include "common/cpu_isa.h"

namespace cnnkernels {

struct LrnParams {
  int64_t channels;
  int before, after;  // channels of the window in front of the own one, and behind it
  double scale;       // alpha / size
  double beta, k;
  bool relu;
  int window() const { return before + 1 + after; }

  // size / 2 channels are in front; more than there are makes no difference.
  LrnParams(int64_t channels, int64_t size, double alpha, double beta, double k, bool relu)
      : channels(channels),
        before(static_cast<int>(std::min(size / 2, channels))),
        after(static_cast<int>(std::min(size - 1 - size / 2, channels))),
        scale(alpha / static_cast<double>(size)),
        beta(beta),
        k(k),
        relu(relu) {}
};

// The arguments of a leaf op, checked.
inline LrnParams lrn_params(const Tensor& x, const std::optional<Tensor>& bias, int64_t size,
                            double alpha, double beta, double k, bool relu) {
  STD_TORCH_CHECK(size >= 1, "size is ", size, "; it must be at least 1");
  if (bias)
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == x.size(1) && bias->is_contiguous() &&
                        bias->scalar_type() == x.scalar_type(),
                    "bias must be contiguous [C] of the input's dtype, got ", to_string(*bias));
  return {x.size(1), size, alpha, beta, k, relu};
}

// v = x + bias, ReLU if asked, and its square. bias is one number here.
template <class T, class A>
CNNKERNELS_INLINE void lrn_load_plane(const T* x, float bias, bool relu, float* v, A* square,
                                      int64_t n) {
  const float floor = relu ? 0.f : -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < n; ++i) {
    const float value = to_f32(x[i]) + bias;
    v[i] = value <= floor ? floor : value;  // NaN passes
    square[i] = static_cast<A>(v[i]) * static_cast<A>(v[i]);
  }
}

// The same along channels.
template <class T, class A>
CNNKERNELS_INLINE void lrn_load_pixel(const T* x, const T* bias, bool relu, float* v, A* square,
                                      int64_t n) {
  const float floor = relu ? 0.f : -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < n; ++i) v[i] = to_f32(x[i]);
  if (bias)
    for (int64_t i = 0; i < n; ++i) v[i] += to_f32(bias[i]);
  for (int64_t i = 0; i < n; ++i) {
    v[i] = v[i] <= floor ? floor : v[i];
    square[i] = static_cast<A>(v[i]) * static_cast<A>(v[i]);
  }
}

template <int kSize, class A>
CNNKERNELS_INLINE A lrn_sum(const A* const* rows, int64_t i) {
  if constexpr (kSize == 1) return rows[0][i];
  return ((rows[0][i] + rows[1][i]) + (rows[2][i] + rows[3][i])) + rows[4][i];
}

// sum[i] = rows[0][i] + ... + rows[size - 1][i]
template <class A>
CNNKERNELS_INLINE void lrn_window_sum(const A* const* rows, int size, A* __restrict sum,
                                      int64_t n) {
  if (size == 5) {  // every published network's
    const A* r[5] = {rows[0], rows[1], rows[2], rows[3], rows[4]};
    for (int64_t i = 0; i < n; ++i) sum[i] = lrn_sum<5>(r, i);
    return;
  }
  for (int64_t i = 0; i < n; ++i) sum[i] = rows[0][i];
  for (int j = 1; j < size; ++j) {
    const A* row = rows[j];
    for (int64_t i = 0; i < n; ++i) sum[i] += row[i];
  }
}

// out = v * (k + scale * sum of the window)^-beta. Zero, infinite, negative and NaN denominators go
// to std::pow one by one, whatever their neighbours are: an element's result depends on its window
// alone.
template <int kSize, class T, class A>
CNNKERNELS_INLINE void lrn_finish_rows(const A* const* rows, const float* v, A scale, A k,
                                       const Power<A>& power, T* __restrict out, int64_t n) {
  const A* r[kSize];
  for (int j = 0; j < kSize; ++j) r[j] = rows[j];
  uint32_t slow = 0;
  for (int64_t i = 0; i < n; ++i) {
    const A d = k + scale * lrn_sum<kSize>(r, i);
    slow |= power.slow(d);
    out[i] = from_f32<T>(power.times(v[i], d));
  }
  if (!slow) return;
  for (int64_t i = 0; i < n; ++i) {
    const A d = k + scale * lrn_sum<kSize>(r, i);
    if (power.slow(d))
      out[i] = from_f32<T>(static_cast<float>(static_cast<A>(v[i]) * std::pow(d, power.exponent)));
  }
}

template <class T, class A>
CNNKERNELS_INLINE void lrn_finish(const A* const* rows, int size, A* sum, const float* v, A scale,
                                  A k, const Power<A>& power, T* out, int64_t n) {
  if (size == 5) return lrn_finish_rows<5>(rows, v, scale, k, power, out, n);
  lrn_window_sum(rows, size, sum, n);
  lrn_finish_rows<1>(&sum, v, scale, k, power, out, n);
}

// direct = grad * d^-beta, through = direct * v / d (= grad * v * d^(-beta-1))
template <class G>
CNNKERNELS_INLINE void lrn_gradient_terms(const G* grad, const float* v,
                                          const float* __restrict sum, float scale, float k,
                                          const Power<float>& power, float* __restrict direct,
                                          float* __restrict through, int64_t n) {
  uint32_t slow = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float d = k + scale * sum[i];
    slow |= power.slow(d);
    direct[i] = power.times(to_f32(grad[i]), d);
    through[i] = direct[i] * v[i] / d;
  }
  if (!slow) return;
  for (int64_t i = 0; i < n; ++i) {
    const float d = k + scale * sum[i];
    if (!power.slow(d)) continue;
    const float g = to_f32(grad[i]);
    direct[i] = g * std::pow(d, power.exponent);
    through[i] = g * v[i] * std::pow(d, power.exponent - 1.f);
  }
}

// dx = direct - factor * v * sum; 0 where the ReLU stopped the value (v is after the ReLU, so 0).
template <class T>
CNNKERNELS_INLINE void lrn_gradient_finish(const float* direct, const float* v, const float* sum,
                                           float factor, bool relu, T* __restrict dx, int64_t n) {
  const float floor = relu ? 0.f : -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < n; ++i) {
    const float value = direct[i] - factor * v[i] * sum[i];
    dx[i] = from_f32<T>(relu & (v[i] <= floor) ? 0.f : value);
  }
}

// One thread's buffers and loops. T: elements of x, A: precision of the sums; gradients may have
// another type (fp32 from a fused pooling).
template <class T, class A>
class Lrn {
 public:
  explicit Lrn(const LrnParams& p)
      : p_(p), scale_(static_cast<A>(p.scale)), k_(static_cast<A>(p.k)), power_(-p.beta) {}

  // A run of n pixels in NCHW: element (c, i) is x[c * x_stride + i], out[c * out_stride + i].
  CNNKERNELS_INLINE void planes(const T* x, int64_t x_stride, const T* bias, T* out,
                                int64_t out_stride, int64_t n) {
    start(n, /*gradient=*/false);
    for (int64_t c = -p_.after; c < p_.channels; ++c) {
      // The next rows are a page away: the hardware does not fetch them by itself.
      if (c + p_.after + 1 < p_.channels) prefetch(x + (c + p_.after + 1) * x_stride, n);
      load(c + p_.after, x, x_stride, bias, n);
      if (c < 0) continue;
      lrn_finish(squares_.window(c - p_.before, p_.window()), p_.window(), sum_.data(),
                 values_.row(c), scale_, k_, power_, out + c * out_stride, n);
    }
  }

  template <class G>
  CNNKERNELS_INLINE void planes_backward(const G* grad, int64_t grad_stride, const T* x,
                                         int64_t x_stride, const T* bias, T* dx, int64_t dx_stride,
                                         int64_t n) {
    start(n, /*gradient=*/true);
    const A factor = static_cast<A>(2 * p_.beta * p_.scale);
    // Channel a is loaded, channel j = a - after has its denominator, c = j - before its gradient.
    for (int64_t a = 0; a < p_.channels + p_.window() - 1; ++a) {
      load(a, x, x_stride, bias, n);
      const int64_t j = a - p_.after, c = j - p_.before;
      if (j >= 0 && j < p_.channels) {
        lrn_window_sum(squares_.window(j - p_.before, p_.window()), p_.window(), sum_.data(), n);
        lrn_gradient_terms(grad + j * grad_stride, values_.row(j), sum_.data(), scale_, k_, power_,
                           direct_.row(j), through_.row(j), n);
      } else if (j >= p_.channels) {
        std::fill_n(through_.row(j), n, A{});
      }
      if (c < 0) continue;
      lrn_window_sum(through_.window(c - p_.after, p_.window()), p_.window(), sum_.data(), n);
      lrn_gradient_finish(direct_.row(c), values_.row(c), sum_.data(), factor, p_.relu,
                          dx + c * dx_stride, n);
    }
  }

  // n pixels in NHWC, each x[i * channels ...].
  CNNKERNELS_INLINE void pixels(const T* x, const T* bias, T* out, int64_t n) {
    start_pixels();
    const int64_t channels = p_.channels;
    for (int64_t i = 0; i < n; ++i, x += channels, out += channels) {
      lrn_load_pixel(x, bias, p_.relu, value_.data(), square_.data() + p_.before, channels);
      lrn_finish(shifted(square_), p_.window(), sum_.data(), value_.data(), scale_, k_, power_, out,
                 channels);
    }
  }

  template <class G>
  CNNKERNELS_INLINE void pixels_backward(const G* grad, const T* x, const T* bias, T* dx,
                                         int64_t n) {
    start_pixels();
    const int64_t channels = p_.channels;
    const A factor = static_cast<A>(2 * p_.beta * p_.scale);
    for (int64_t i = 0; i < n; ++i, grad += channels, x += channels, dx += channels) {
      lrn_load_pixel(x, bias, p_.relu, value_.data(), square_.data() + p_.before, channels);
      lrn_window_sum(shifted(square_), p_.window(), sum_.data(), channels);
      lrn_gradient_terms(grad, value_.data(), sum_.data(), scale_, k_, power_, gradient_.data(),
                         term_.data() + p_.after, channels);
      lrn_window_sum(shifted(term_), p_.window(), sum_.data(), channels);
      lrn_gradient_finish(gradient_.data(), value_.data(), sum_.data(), factor, p_.relu, dx,
                          channels);
    }
  }

 private:
  // `size` rows of n elements that follow the channel; rows never written are zero.
  template <class E>
  struct Ring {
    std::vector<E> data;
    std::vector<const E*> pointers;
    int64_t rows = 0, n = 0;
    void reset(int64_t size, int64_t length) {
      rows = size, n = length;
      data.assign(rows * n, E{});
      pointers.resize(size);
    }
    E* row(int64_t c) { return data.data() + (c + rows) % rows * n; }
    const E* const* window(int64_t first, int size) {
      for (int j = 0; j < size; ++j) pointers[j] = row(first + j);
      return pointers.data();
    }
  };

  void start(int64_t n, bool gradient) {
    sum_.resize(n);
    squares_.reset(p_.window(), n);
    values_.reset(p_.window(), n);
    if (gradient) direct_.reset(p_.window(), n), through_.reset(p_.window(), n);
  }

  // Channel c's values and squares; past the last channel, zeros.
  CNNKERNELS_INLINE void load(int64_t c, const T* x, int64_t x_stride, const T* bias, int64_t n) {
    if (c < p_.channels)
      lrn_load_plane(x + c * x_stride, bias ? to_f32(bias[c]) : -0.f, p_.relu, values_.row(c),
                     squares_.row(c), n);
    else
      std::fill_n(squares_.row(c), n, A{});
  }

  CNNKERNELS_INLINE static void prefetch(const T* row, int64_t n) {
    for (int64_t i = 0; i < n; i += static_cast<int64_t>(64 / sizeof(T)))
      __builtin_prefetch(row + i);
  }

  void start_pixels() {
    const size_t n = p_.channels, padded = n + p_.window() - 1;
    if (square_.size() == padded) return;
    value_.resize(n), sum_.resize(n), gradient_.resize(n);
    square_.assign(padded, A{}), term_.assign(padded, A{});
    shifts_.resize(p_.window());
  }

  const A* const* shifted(const std::vector<A>& padded) {
    for (int j = 0; j < p_.window(); ++j) shifts_[j] = padded.data() + j;
    return shifts_.data();
  }

  LrnParams p_;
  A scale_, k_;
  Power<A> power_;
  Ring<A> squares_, direct_, through_;
  Ring<float> values_;
  std::vector<float> value_;
  std::vector<A> sum_, square_, term_, gradient_;
  std::vector<const A*> shifts_;
};

template <class T>
using LrnForward = Lrn<T, std::conditional_t<std::is_same_v<T, float>, double, float>>;
template <class T>
using LrnBackward = Lrn<T, float>;

}  // namespace cnnkernels
