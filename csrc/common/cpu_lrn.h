// Local response normalisation of a few pixels or planes on the CPU, forward and backward: what the
// LRN op and its fusion with max-pooling share.
//
// Both layouts come down to loops over flat arrays (cpu_lrn_loops.h). In NCHW the arrays are runs
// of pixels, a ring of `size` rows; in NHWC one pixel's channels, shifted, with zeros at both ends.
#pragma once

#include <vector>

#include "common/cpu_lrn_loops.h"

namespace cnnkernels {

// One thread's buffers and loops. T: elements of x, A: precision of the power; gradients may have
// another type (fp32 from a fused pooling).
template <class T, class A>
class Lrn {
 public:
  explicit Lrn(const LrnParams& p) : p_(p), d_(p), power_(-p.beta) {}

  // A run of n pixels in NCHW: element (c, i) is x[c * x_stride + i], out[c * out_stride + i].
  CNNKERNELS_INLINE void planes(const T* x, int64_t x_stride, const T* bias, T* out,
                                int64_t out_stride, int64_t n) {
    start(n, /*gradient=*/false);
    for (int64_t c = -p_.after; c < p_.channels; ++c) {
      // The next rows are a page away: the hardware does not fetch them by itself.
      if (c + p_.after + 1 < p_.channels) prefetch(x + (c + p_.after + 1) * x_stride, n);
      load(c + p_.after, x, x_stride, bias, n);
      if (c < 0) continue;
      const int64_t first = c - p_.before;
      lrn_finish(squares_.window(first, p_.window()), values_.window(first, p_.window()),
                 p_.window(), sum_.data(), values_.row(c), d_, power_, out + c * out_stride, n);
    }
  }

  template <class G>
  CNNKERNELS_INLINE void planes_backward(const G* grad, int64_t grad_stride, const T* x,
                                         int64_t x_stride, const T* bias, T* dx, int64_t dx_stride,
                                         int64_t n) {
    start(n, /*gradient=*/true);
    const float factor = static_cast<float>(2 * p_.beta * p_.scale);
    // Channel a is loaded, channel j = a - after has its denominator, c = j - before its gradient.
    for (int64_t a = 0; a < p_.channels + p_.window() - 1; ++a) {
      load(a, x, x_stride, bias, n);
      const int64_t j = a - p_.after, c = j - p_.before;
      if (j >= 0 && j < p_.channels) {
        lrn_window_sum(squares_.window(j - p_.before, p_.window()), p_.window(), sum_.data(), n);
        lrn_gradient_terms(grad + j * grad_stride, values_.row(j), sum_.data(), d_.scale32, d_.k32,
                           power_, direct_.row(j), through_.row(j), n);
      } else if (j >= p_.channels) {
        std::fill_n(through_.row(j), n, 0.f);
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
      lrn_load_pixel(x, bias, p_.relu, value(), square_.data() + p_.before, channels);
      lrn_finish(shifted(square_, shifts_), shifted(value_, value_shifts_), p_.window(),
                 sum_.data(), value(), d_, power_, out, channels);
    }
  }

  template <class G>
  CNNKERNELS_INLINE void pixels_backward(const G* grad, const T* x, const T* bias, T* dx,
                                         int64_t n) {
    start_pixels();
    const int64_t channels = p_.channels;
    const float factor = static_cast<float>(2 * p_.beta * p_.scale);
    for (int64_t i = 0; i < n; ++i, grad += channels, x += channels, dx += channels) {
      lrn_load_pixel(x, bias, p_.relu, value(), square_.data() + p_.before, channels);
      lrn_window_sum(shifted(square_, shifts_), p_.window(), sum_.data(), channels);
      lrn_gradient_terms(grad, value(), sum_.data(), d_.scale32, d_.k32, power_, gradient_.data(),
                         term_.data() + p_.after, channels);
      lrn_window_sum(shifted(term_, shifts_), p_.window(), sum_.data(), channels);
      lrn_gradient_finish(gradient_.data(), value(), sum_.data(), factor, p_.relu, dx, channels);
    }
  }

 private:
  // `size` rows of n elements that follow the channel; rows never written are zero.
  struct Ring {
    std::vector<float> data;
    std::vector<const float*> pointers;
    int64_t rows = 0, n = 0;
    void reset(int64_t size, int64_t length) {
      rows = size, n = length;
      data.assign(rows * n, 0.f);
      pointers.resize(size);
    }
    float* row(int64_t c) { return data.data() + (c + rows) % rows * n; }
    const float* const* window(int64_t first, int size) {
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
    if (c < p_.channels) {
      lrn_load_plane(x + c * x_stride, bias ? to_f32(bias[c]) : -0.f, p_.relu, values_.row(c),
                     squares_.row(c), n);
    } else {
      std::fill_n(squares_.row(c), n, 0.f);
      std::fill_n(values_.row(c), n, 0.f);
    }
  }

  CNNKERNELS_INLINE static void prefetch(const T* row, int64_t n) {
    for (int64_t i = 0; i < n; i += static_cast<int64_t>(64 / sizeof(T)))
      __builtin_prefetch(row + i);
  }

  void start_pixels() {
    const size_t n = p_.channels, padded = n + p_.window() - 1;
    if (square_.size() == padded) return;
    sum_.resize(n), gradient_.resize(n);
    value_.assign(padded, 0.f), square_.assign(padded, 0.f), term_.assign(padded, 0.f);
    shifts_.resize(p_.window()), value_shifts_.resize(p_.window());
  }

  float* value() { return value_.data() + p_.before; }

  const float* const* shifted(const std::vector<float>& padded, std::vector<const float*>& rows) {
    for (int j = 0; j < p_.window(); ++j) rows[j] = padded.data() + j;
    return rows.data();
  }

  LrnParams p_;
  Denominator d_;
  Power<A> power_;
  Ring squares_, values_, direct_, through_;
  std::vector<float> value_, sum_, square_, term_, gradient_;
  std::vector<const float*> shifts_, value_shifts_;
};

template <class T>
using LrnForward = Lrn<T, std::conditional_t<std::is_same_v<T, float>, double, float>>;
template <class T>
using LrnBackward = Lrn<T, float>;

}  // namespace cnnkernels
