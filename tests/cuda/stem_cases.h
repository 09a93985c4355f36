// Stem problems with random operands and their fp64 results from the definition, for check_stem.cu.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "conv2d/conv2d_stem.h"

namespace cnnkernels {

constexpr int kNoPool = -1;

struct StemCase {
  int n, h, w, k, r, s, stride, pad_h, pad_w;
  bool nhwc, relu, bias;
  int pool_pad = kNoPool;  // 3x3/2 max-pool with this padding
  bool ceil_mode = false;
};

inline plan::StemProblem problem_of(const StemCase& c, Dtype dtype, StemInput input) {
  plan::StemProblem x;
  x.n = c.n, x.h = c.h, x.w = c.w, x.k = c.k, x.r = c.r, x.s = c.s;
  x.stride = c.stride, x.pad_h = c.pad_h, x.pad_w = c.pad_w;
  x.dtype = dtype, x.input = input;
  x.pool = c.pool_pad != kNoPool, x.pool_pad = std::max(c.pool_pad, 0), x.ceil_mode = c.ceil_mode;
  return x;
}

inline size_t size_of(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

inline float to_value(const uint8_t* at, Dtype dtype) {
  if (dtype == Dtype::f32) {
    float v;
    std::memcpy(&v, at, 4);
    return v;
  }
  if (dtype == Dtype::bf16) {
    __nv_bfloat16 v;
    std::memcpy(&v, at, 2);
    return __bfloat162float(v);
  }
  __half v;
  std::memcpy(&v, at, 2);
  return __half2float(v);
}
inline void from_value(uint8_t* at, float value, Dtype dtype) {
  if (dtype == Dtype::f32) {
    std::memcpy(at, &value, 4);
  } else if (dtype == Dtype::bf16) {
    const __nv_bfloat16 v = __float2bfloat16(value);
    std::memcpy(at, &v, 2);
  } else {
    const __half v = __float2half(value);
    std::memcpy(at, &v, 2);
  }
}

struct StemData {
  StemCase c;
  Dtype dtype;
  StemInput input;
  StemParams prm;                 // all but the pointers
  std::vector<uint8_t> x, w, b;   // as the kernel reads them
  std::vector<float> xv, wv, bv;  // their values; x as the weight's type sees it

  StemData(const StemCase& c, Dtype dtype, StemInput input) : c(c), dtype(dtype), input(input) {
    static_cast<plan::StemProblem&>(prm) = problem_of(c, dtype, input);
    const int64_t hw = int64_t{c.h} * c.w, rs = int64_t{c.r} * c.s;
    const int64_t x_nhwc[4] = {hw * 3, 1, c.w * 3, 3}, x_nchw[4] = {hw * 3, hw, c.w, 1};
    const int64_t w_nhwc[4] = {rs * 3, 1, c.s * 3, 3}, w_nchw[4] = {rs * 3, rs, c.s, 1};
    std::copy_n(c.nhwc ? x_nhwc : x_nchw, 4, prm.x_stride);
    std::copy_n(c.nhwc ? w_nhwc : w_nchw, 4, prm.weight_stride);
    prm.relu = c.relu;
    fill(x, xv, hw * 3 * c.n, input == StemInput::f32 ? Dtype::f32 : dtype, 1.f,
         input == StemInput::u8);
    for (float& v : xv) v = rounded(v);
    fill(w, wv, rs * 3 * c.k, dtype, 0.2f, false);
    fill(b, bv, c.k, dtype, 1.f, false);
  }

  size_t outputs() const { return size_t(c.n) * prm.out_p() * prm.out_q() * c.k; }
  size_t output_bytes() const { return outputs() * size_of(dtype); }

  // The exact result at output element j of [N, out_p, out_q, K].
  double exact(size_t j) const {
    const int k = j % c.k;
    const size_t m = j / c.k;
    const int ow = prm.out_q(), oh = prm.out_p();
    const int q = m % ow, p = m / ow % oh, n = m / ow / oh;
    if (!prm.pool) return conv(n, k, p, q);
    double best = -std::numeric_limits<double>::infinity();
    for (int dp = 0; dp < 3; ++dp)
      for (int dq = 0; dq < 3; ++dq) {
        const int pp = 2 * p - prm.pool_pad + dp, qq = 2 * q - prm.pool_pad + dq;
        if (pp >= 0 && qq >= 0 && pp < prm.p() && qq < prm.q())
          best = std::max(best, conv(n, k, pp, qq));
      }
    return best;
  }

  std::string name() const {
    const char* dtypes[] = {"tf32", "fp16", "bf16"};
    const char* inputs[] = {"", " of fp32", " of uint8"};
    const char* pool = !prm.pool ? "" : c.pool_pad ? " pool pad 1" : " pool";
    char text[200];
    std::snprintf(text, sizeof text, "%s%s n%d %dx%d K%d %dx%d/%d pad %d,%d %s%s%s%s%s",
                  dtypes[int(dtype)], inputs[int(input)], c.n, c.h, c.w, c.k, c.r, c.s, c.stride,
                  c.pad_h, c.pad_w, c.nhwc ? "nhwc" : "nchw", c.relu ? " relu" : "",
                  c.bias ? " bias" : "", pool, c.ceil_mode ? " ceil" : "");
    return text;
  }

  // Whether the output (NaN where nothing was written) is right; prints one line. Of large outputs
  // `samples` elements are compared, all are searched for NaN.
  bool right(const uint8_t* y, size_t samples, const char* remarks, bool also) const {
    const size_t total = outputs(), size = size_of(dtype);
    bool written = true;
    for (size_t i = 0; i < total; ++i) written &= !std::isnan(to_value(y + i * size, dtype));
    std::vector<double> difference, value;
    for (size_t i = 0; i < std::min(total, samples); ++i) {
      const size_t j = total <= samples ? i : (size_t(rand()) * 32768 + rand()) % total;
      value.push_back(exact(j));
      difference.push_back(to_value(y + j * size, dtype) - value.back());
    }
    double num = 0, den = 0, worst = 0;
    for (size_t i = 0; i < value.size(); ++i)
      num += difference[i] * difference[i], den += value[i] * value[i];
    const double rms = std::sqrt(den / value.size());
    for (size_t i = 0; i < value.size(); ++i)
      worst = std::max(worst, std::fabs(difference[i]) / (std::fabs(value[i]) + rms));
    const double error = std::sqrt(num / den), limit = dtype == Dtype::bf16 ? 5e-3 : 1e-3;
    const bool ok = written && error < limit && worst < 4 * limit && also;
    std::printf("%s: error %.2e worst %.2e%s%s %s\n", name().c_str(), error, worst,
                written ? "" : " NOT WRITTEN", remarks, ok ? "ok" : "BAD");
    std::fflush(stdout);
    return ok;
  }

 private:
  float rounded(float v) const {
    uint8_t bytes[4];
    from_value(bytes, v, dtype);
    return to_value(bytes, dtype);
  }
  static void fill(std::vector<uint8_t>& bytes, std::vector<float>& values, size_t count,
                   Dtype dtype, float scale, bool image) {
    const size_t size = image ? 1 : size_of(dtype);
    bytes.resize(count * size), values.resize(count);
    for (size_t i = 0; i < count; ++i) {
      if (image) {
        values[i] = bytes[i] = rand() >> 7 & 255;
        continue;
      }
      from_value(&bytes[i * size], (static_cast<float>(rand()) / RAND_MAX * 2 - 1) * scale, dtype);
      values[i] = to_value(&bytes[i * size], dtype);
    }
  }
  double conv(int n, int k, int p, int q) const {
    double acc = c.bias ? bv[k] : 0.;
    for (int ch = 0; ch < 3; ++ch)
      for (int r = 0; r < c.r; ++r)
        for (int s = 0; s < c.s; ++s) {
          const int h = p * c.stride - c.pad_h + r, w = q * c.stride - c.pad_w + s;
          if (h < 0 || w < 0 || h >= c.h || w >= c.w) continue;
          acc += double(xv[n * prm.x_stride[0] + ch * prm.x_stride[1] + h * prm.x_stride[2] +
                           w * prm.x_stride[3]]) *
                 wv[k * prm.weight_stride[0] + ch * prm.weight_stride[1] +
                    r * prm.weight_stride[2] + s * prm.weight_stride[3]];
        }
    return c.relu ? std::max(acc, 0.) : acc;
  }
};

}  // namespace cnnkernels
