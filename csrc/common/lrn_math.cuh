// Arithmetic of local response normalisation in fp32, shared by the LRN kernels and the fused
// chain.
#pragma once

#include "common/words.cuh"
#include "plan/lrn.h"

namespace cnnkernels {

// Constants of one call: d = k + scale * sum of squares, y = v * d^-beta. What fp32 can't hold goes
// into a second float.
struct LrnConstants {
  float scale, scale_low, beta, k, k_low;
  float limit;  // a larger d needs an exact sum, see denominators()
  bool relu;
  explicit LrnConstants(const LrnShape& s)
      : scale(static_cast<float>(s.alpha / s.size)),
        scale_low(static_cast<float>(s.alpha / s.size - scale)),
        beta(static_cast<float>(s.beta)),
        k(static_cast<float>(s.k)),
        k_low(static_cast<float>(s.k - k)),
        limit(1.25f * k),
        relu(s.relu) {}
};

struct TwoFloats {  // high + low, |low| far below |high|
  float high, low;
};

// A product that stays one: contracted into different sums, the kernels would differ in the last
// bit.
__device__ __forceinline__ float product(float a, float b) { return __fmul_rn(a, b); }

// Adds x to sum, what rounding loses to sum.low (Knuth's TwoSum).
__device__ __forceinline__ void add_exactly(TwoFloats& sum, float x) {
  const float high = sum.high + x, rest = high - sum.high;
  sum.low += (sum.high - (high - rest)) + (x - rest);
  sum.high = high;
}

// d of the windows v[e] .. v[e + 4] from their sums of squares. 16-bit types: one rounding. fp32:
// the sum's own roundings, up to 4, and the scale's count for the share that the sum has in d; up
// to a fifth (d <= 1.25 k) they stay below 0.75 ulp of the result, above it the sum is made exact.
template <class T, int N>
__device__ __forceinline__ void denominators(const float* v, const float* sum,
                                             const LrnConstants& lrn, TwoFloats* d) {
  bool large = false;
#pragma unroll
  for (int e = 0; e < N; ++e) {
    d[e].high = fmaf(lrn.scale, sum[e], lrn.k);
    if constexpr (sizeof(T) == 4) {
      d[e].low = fmaf(lrn.scale, sum[e], lrn.k - d[e].high) + lrn.k_low;
      large |= d[e].high > lrn.limit;
    }
  }
  if (large) {
#pragma unroll
    for (int e = 0; e < N; ++e) {
      TwoFloats exact{0.f, 0.f};
#pragma unroll
      for (int j = e; j < e + 5; ++j) {
        const float square = product(v[j], v[j]);
        add_exactly(exact, square);
        exact.low += fmaf(v[j], v[j], -square);
      }
      const float scaled = product(lrn.scale, exact.high);
      const float rest = fmaf(lrn.scale, exact.high, -scaled);
      d[e] = {lrn.k, fmaf(lrn.scale, exact.low, fmaf(lrn.scale_low, exact.high, rest)) + lrn.k_low};
      add_exactly(d[e], scaled);
    }
  }
}

// d^-beta and d^-(beta + 1) for the fast kernels, and v * d^-beta. 16-bit types: two special
// functions, error 5e-7, far below their rounding, any beta.
template <class T>
struct LrnPower {
  __device__ static float scaled(float v, TwoFloats d, const LrnConstants& lrn) {
    return v * approx_exp2(approx_log2(d.high) * -lrn.beta);
  }
  __device__ static void both(TwoFloats d, const LrnConstants& lrn, float& p, float& p1) {
    p1 = approx_exp2(approx_log2(d.high) * (-lrn.beta - 1.f));
    p = p1 * fminf(d.high, 3.4e38f);  // 0, not NaN, where d overflowed
  }
};

// fp32: beta = 3/4 only. r ~ d^-1/2 and q ~ r^1/2, each corrected by one Newton step whose residual
// is computed without rounding; r * q and the corrections stay in two floats, so the result is
// rounded once (below 1.5 ulp with d's error; tests/cuda/check_mem.cu).
template <>
struct LrnPower<float> {
  __device__ static TwoFloats power(TwoFloats d, float& inverse, float& error) {
    const float r = approx_rsqrt(d.high), q = approx_sqrt(r), t = product(r, d.high);
    inverse = product(r, r);
    error = fmaf(fmaf(r, d.high, -t), r, fmaf(t, r, -1.f));  // r^2 d - 1
    // NaN where d overflowed, made 1 so that the powers stay 0.
    error = fminf(fmaf(inverse, d.low, error), 1.f);
    const float q_error = fmaf(q, q, -r);
    const float high = product(r, q);
    return {high, fmaf(q, fmaf(-0.75f * r, error, -0.5f * q_error), fmaf(r, q, -high))};
  }
  __device__ static float scaled(float v, TwoFloats d, const LrnConstants&) {
    float inverse, error;
    const TwoFloats p = power(d, inverse, error);
    return fmaf(v, p.high, v * p.low);
  }
  __device__ static void both(TwoFloats d, const LrnConstants&, float& p, float& p1) {
    float inverse, error;
    const TwoFloats two = power(d, inverse, error);
    p = two.high + two.low;
    p1 = p * fmaf(-inverse, error, inverse);
  }
};

// sum[e] = q[e] + ... + q[e + 4]: neighbours share the sums of two.
template <int N>
__device__ __forceinline__ void sums_of_5(const float* q, float* sum) {
  float pair[N + 3];
#pragma unroll
  for (int i = 0; i < N + 3; ++i) pair[i] = q[i] + q[i + 1];
#pragma unroll
  for (int e = 0; e < N; ++e) sum[e] = pair[e] + pair[e + 2] + q[e + 4];
}

// v = relu?(x + bias?) for a chunk; where !ok the channels lie outside and stay 0.
template <bool kBias, class T, int N>
__device__ __forceinline__ void lrn_input(Chunk<T, N> x, const T* bias, bool ok, bool relu,
                                          float* v) {
  Chunk<T, N> b = Chunk<T, N>::filled(0u);
  if (kBias && ok) b.load(bias);
  if (!kBias && relu) {  // packed
#pragma unroll
    for (int i = 0; i < Chunk<T, N>::kWords; ++i) x.w[i] = Words<T>::maximum(x.w[i], 0u);
  }
#pragma unroll
  for (int e = 0; e < N; ++e) {
    v[e] = x.element(e);
    if (kBias) {
      v[e] += b.element(e);
      if (relu) v[e] = max_nan(v[e], 0.f);
    }
  }
}

}  // namespace cnnkernels
