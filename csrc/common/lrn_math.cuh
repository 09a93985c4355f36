// Arithmetic of local response normalisation in fp32, shared by the LRN kernels and the fused
// chain.
#pragma once

#include "common/words.cuh"
#include "plan/lrn.h"

namespace cnnkernels {

// Constants of one call: d = k + scale * sum of squares, y = v * d^-beta.
struct LrnConstants {
  float scale, beta, k;
  bool relu;
  explicit LrnConstants(const LrnShape& s)
      : scale(s.alpha / static_cast<float>(s.size)), beta(s.beta), k(s.k), relu(s.relu) {}
};

__device__ __forceinline__ float max_nan(float a, float b) {
  float r;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
__device__ __forceinline__ float approx_exp2_of_log2(float d, float factor) {  // d^factor
  float r;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(d));
  r *= factor;
  asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(r));
  return r;
}

// d^-beta and d^-(beta + 1) for the fast kernels. 16-bit types: two special-function instructions,
// error 5e-7, far below their rounding, any beta. fp32: beta = 3/4 from rsqrt and sqrt, then one
// Newton step against p^4 d^3 = 1, which brings the error to fp32 rounding.
template <class T>
struct FastPower {
  __device__ static float minus_beta(float d, float beta) { return approx_exp2_of_log2(d, -beta); }
  __device__ static void both(float d, float beta, float& p, float& p1) {
    p1 = approx_exp2_of_log2(d, -beta - 1.f);
    p = p1 * fminf(d, 3.4e38f);  // 0, not NaN, where d overflowed
  }
};
template <>
struct FastPower<float> {
  __device__ static void both(float d, float, float& p, float& p1) {
    float r, q;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(d));
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(q) : "f"(r));
    const float p0 = r * q;
    const float half = p0 * p0 * d;  // about d^-1/2
    // The relative errors; NaN where d overflowed, made 1 so that the powers stay 0.
    const float error = fminf(fmaf(half * half, d, -1.f), 1.f);
    const float inverse = r * r;
    const float inverse_error = fminf(fmaf(inverse, d, -1.f), 1.f);
    p = fmaf(-0.25f * p0, error, p0);
    p1 = p * fmaf(-inverse, inverse_error, inverse);
  }
  __device__ static float minus_beta(float d, float beta) {
    float p, p1;
    both(d, beta, p, p1);
    return p;
  }
};

// A product that stays one: contracted into different sums, the kernels would differ in the last
// bit.
__device__ __forceinline__ float product(float a, float b) { return __fmul_rn(a, b); }

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
