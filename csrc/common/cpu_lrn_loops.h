// Loops of local response normalisation on the CPU, forward and backward, over flat arrays: squares
// (or gradient terms) of `size` neighbouring channels are added, and the sum is turned into
// d^-beta.
//
// Sums are in fp32. Where k outweighs their rounding, that keeps fp32 results within 2 ulp as well;
// the other elements of fp32 tensors are summed again in double.
#pragma once

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
template <class T>
CNNKERNELS_INLINE void lrn_load_plane(const T* x, float bias, bool relu, float* v, float* square,
                                      int64_t n) {
  const float floor = relu ? 0.f : -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < n; ++i) {
    const float value = to_f32(x[i]) + bias;
    v[i] = value <= floor ? floor : value;  // NaN passes
    square[i] = v[i] * v[i];
  }
}

// The same along channels.
template <class T>
CNNKERNELS_INLINE void lrn_load_pixel(const T* x, const T* bias, bool relu, float* v, float* square,
                                      int64_t n) {
  const float floor = relu ? 0.f : -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < n; ++i) v[i] = to_f32(x[i]);
  if (bias)
    for (int64_t i = 0; i < n; ++i) v[i] += to_f32(bias[i]);
  for (int64_t i = 0; i < n; ++i) {
    v[i] = v[i] <= floor ? floor : v[i];
    square[i] = v[i] * v[i];
  }
}

template <int kSize>
CNNKERNELS_INLINE float lrn_sum(const float* const* rows, int64_t i) {
  if constexpr (kSize == 1) return rows[0][i];
  return ((rows[0][i] + rows[1][i]) + (rows[2][i] + rows[3][i])) + rows[4][i];
}

// sum[i] = rows[0][i] + ... + rows[size - 1][i]
CNNKERNELS_INLINE void lrn_window_sum(const float* const* rows, int size, float* __restrict sum,
                                      int64_t n) {
  if (size == 5) {  // every published network's
    const float* r[5] = {rows[0], rows[1], rows[2], rows[3], rows[4]};
    for (int64_t i = 0; i < n; ++i) sum[i] = lrn_sum<5>(r, i);
    return;
  }
  for (int64_t i = 0; i < n; ++i) sum[i] = rows[0][i];
  for (int j = 1; j < size; ++j) {
    const float* row = rows[j];
    for (int64_t i = 0; i < n; ++i) sum[i] += row[i];
  }
}

// k + scale * sum of squares, and up to which sum fp32 will do (Denominator::limit).
struct Denominator {
  double scale, k;
  float scale32, k32, limit;

  // A sum of `size` squares is off by size + 1 roundings with scale's; in d they count by the sum's
  // share in it, in the result beta times that: a quarter of a rounding is allowed.
  explicit Denominator(const LrnParams& p)
      : scale(p.scale),
        k(p.k),
        scale32(static_cast<float>(p.scale)),
        k32(static_cast<float>(p.k)),
        limit(-1.f) {  // no sum
    if (p.scale < 0 || p.k < 1e-20 || p.k > 1e20 || k32 != p.k) return;
    if (std::fabs(p.beta) > 1) return;  // the power would magnify d's own rounding
    const double share = 0.25 / (std::max(std::fabs(p.beta), 0.75) * (p.window() + 1));
    limit = static_cast<float>(std::min(share * p.k / std::max(p.scale, 1e-30), 1e30));
  }
};

// out = v * d^-beta, d = k + scale * sum of the window. Zero, infinite, negative and NaN
// denominators go to std::pow one by one, and sums beyond the limit to double, whatever their
// neighbours are: an element's result depends on its window alone. rows are squares, or one row of
// their sums; values are the window's values.
template <int kSize, class T>
CNNKERNELS_INLINE void lrn_finish_rows(const float* const* rows, const float* const* values,
                                       int size, const float* v, const Denominator& d,
                                       const Power<double>& power, T* __restrict out, int64_t n) {
  const float* r[kSize];
  for (int j = 0; j < kSize; ++j) r[j] = rows[j];
  uint32_t far = 0;
  const float scale = d.scale32, k = d.k32, limit = d.limit;
  for (int64_t i = 0; i < n; ++i) {
    const float sum = lrn_sum<kSize>(r, i);
    far |= !(sum <= limit);
    out[i] = power.times(v[i], k + scale * sum);
  }
  if (!far) return;
  for (int64_t i = 0; i < n; ++i) {
    if (lrn_sum<kSize>(r, i) <= limit) continue;
    double sum = 0;
    for (int j = 0; j < size; ++j) sum += static_cast<double>(values[j][i]) * values[j][i];
    const double exact = d.k + d.scale * sum;
    out[i] = power.slow(exact)
                 ? static_cast<float>(v[i] * std::pow(exact, power.exponent))
                 : power.template times<true>(v[i], static_cast<float>(exact), power.tail(exact));
  }
}

template <int kSize, class T>
CNNKERNELS_INLINE void lrn_finish_rows(const float* const* rows, const float* const*, int,
                                       const float* v, const Denominator& d,
                                       const Power<float>& power, T* __restrict out, int64_t n) {
  const float* r[kSize];
  for (int j = 0; j < kSize; ++j) r[j] = rows[j];
  uint32_t slow = 0;
  const float scale = d.scale32, k = d.k32;
  for (int64_t i = 0; i < n; ++i) {
    const float sum = k + scale * lrn_sum<kSize>(r, i);
    slow |= power.slow(sum);
    out[i] = from_f32<T>(power.times(v[i], sum));
  }
  if (!slow) return;
  for (int64_t i = 0; i < n; ++i) {
    const float sum = k + scale * lrn_sum<kSize>(r, i);
    if (power.slow(sum)) out[i] = from_f32<T>(v[i] * std::pow(sum, power.exponent));
  }
}

template <class T, class A>
CNNKERNELS_INLINE void lrn_finish(const float* const* rows, const float* const* values, int size,
                                  float* sum, const float* v, const Denominator& d,
                                  const Power<A>& power, T* out, int64_t n) {
  if (size == 5) return lrn_finish_rows<5>(rows, values, size, v, d, power, out, n);
  lrn_window_sum(rows, size, sum, n);
  lrn_finish_rows<1>(&sum, values, size, v, d, power, out, n);
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

}  // namespace cnnkernels
