// Stand-alone check of the stem convolution (no torch): random inputs against an fp64 CPU
// reference, NaN-poisoned outputs with guard zones, repetition bit-equal. With an argument "time":
// timings.
//   nvcc -O3 -std=c++17 -Icsrc -gencode arch=compute_90a,code=sm_90a tests/cuda/check_stem.cu \
//        csrc/conv2d/conv2d_stem_sm90.cu -o check_stem && compute-sanitizer ./check_stem
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "conv2d/conv2d_stem.h"

using namespace cnnkernels;

#define CUDA_OK(call)                                        \
  do {                                                       \
    cudaError_t e = (call);                                  \
    if (e != cudaSuccess) {                                  \
      std::printf("%s: %s\n", #call, cudaGetErrorString(e)); \
      std::exit(2);                                          \
    }                                                        \
  } while (0)

struct Case {
  int n, h, w, k, r, s, stride, pad_h, pad_w;
  bool nhwc, relu, bias;
};

static float uniform() { return static_cast<float>(rand()) / RAND_MAX * 2 - 1; }

template <class T>
static StemParams params_of(const Case& c, const T* x, const T* w, const T* b, T* y, Dtype dtype) {
  StemParams prm{};
  prm.x = x, prm.weight = w, prm.bias = c.bias ? b : nullptr, prm.y = y;
  const int64_t hw = int64_t{c.h} * c.w, rs = c.r * c.s;
  const int64_t xs_nhwc[4] = {hw * 3, 1, c.w * 3, 3}, xs_nchw[4] = {hw * 3, hw, c.w, 1};
  const int64_t ws_nhwc[4] = {rs * 3, 1, c.s * 3, 3}, ws_nchw[4] = {rs * 3, rs, c.s, 1};
  std::memcpy(prm.x_stride, c.nhwc ? xs_nhwc : xs_nchw, sizeof xs_nhwc);
  std::memcpy(prm.weight_stride, c.nhwc ? ws_nhwc : ws_nchw, sizeof ws_nhwc);
  prm.n = c.n, prm.h = c.h, prm.w = c.w, prm.k = c.k, prm.r = c.r, prm.s = c.s;
  prm.p = (c.h + 2 * c.pad_h - c.r) / c.stride + 1,
  prm.q = (c.w + 2 * c.pad_w - c.s) / c.stride + 1;
  prm.stride = c.stride, prm.pad_h = c.pad_h, prm.pad_w = c.pad_w, prm.relu = c.relu;
  prm.dtype = dtype;
  return prm;
}

template <class T>
struct Buffers {
  T *x, *w, *b, *y;
  size_t nx, nw, ny;
  static constexpr size_t kGuard = 4096;
  std::vector<T> hx, hw, hb;

  explicit Buffers(const Case& c) {
    const StemParams prm = params_of<T>(c, nullptr, nullptr, nullptr, nullptr, Dtype::bf16);
    nx = size_t{3} * c.n * c.h * c.w, nw = size_t{3} * c.k * c.r * c.s;
    ny = size_t(c.n) * prm.p * prm.q * c.k;
    hx.resize(nx), hw.resize(nw), hb.resize(c.k);
    for (auto& v : hx) v = T(uniform());
    for (auto& v : hw) v = T(uniform() * 0.2f);
    for (auto& v : hb) v = T(uniform());
    CUDA_OK(cudaMalloc(&x, nx * 2 + 16));
    CUDA_OK(cudaMalloc(&w, nw * 2));
    CUDA_OK(cudaMalloc(&b, c.k * 2));
    CUDA_OK(cudaMalloc(&y, (ny + 2 * kGuard) * 2));
    CUDA_OK(cudaMemcpy(x, hx.data(), nx * 2, cudaMemcpyHostToDevice));
    CUDA_OK(cudaMemcpy(w, hw.data(), nw * 2, cudaMemcpyHostToDevice));
    CUDA_OK(cudaMemcpy(b, hb.data(), c.k * 2, cudaMemcpyHostToDevice));
  }
  ~Buffers() { cudaFree(x), cudaFree(w), cudaFree(b), cudaFree(y); }
};

template <class T>
static bool check(const Case& c, Dtype dtype, const char* name) {
  Buffers<T> buf(c);
  const StemParams prm = params_of<T>(c, buf.x, buf.w, buf.b, buf.y + Buffers<T>::kGuard, dtype);
  const size_t total = buf.ny + 2 * Buffers<T>::kGuard;
  std::vector<T> first(total), again(total);
  for (auto* out : {&first, &again}) {
    CUDA_OK(cudaMemset(buf.y, 0xff, total * 2));  // NaN
    CUDA_OK(launch_conv2d_stem_sm90(prm, nullptr));
    CUDA_OK(cudaDeviceSynchronize());
    CUDA_OK(cudaMemcpy(out->data(), buf.y, total * 2, cudaMemcpyDeviceToHost));
  }
  bool guards = true;
  for (size_t i = 0; i < Buffers<T>::kGuard; ++i)
    for (size_t j : {i, total - 1 - i}) {
      uint16_t bits;
      std::memcpy(&bits, &first[j], 2);
      guards = guards && bits == 0xffff;
    }
  const bool same = std::memcmp(first.data(), again.data(), total * 2) == 0;
  double num = 0, den = 0;
  const size_t samples = buf.ny < 20000 ? buf.ny : 20000;
  for (size_t i = 0; i < buf.ny; ++i)
    if (std::isnan(float(first[Buffers<T>::kGuard + i]))) num = 1e30;
  for (size_t i = 0; i < samples; ++i) {
    const size_t j = samples == buf.ny ? i : (size_t(rand()) * 32768 + rand()) % buf.ny;
    const int k = j % c.k;
    const size_t m = j / c.k;
    const int q = m % prm.q, p = m / prm.q % prm.p, n = m / prm.q / prm.p;
    double acc = c.bias ? double(float(buf.hb[k])) : 0;
    for (int ch = 0; ch < 3; ++ch)
      for (int r = 0; r < c.r; ++r)
        for (int s = 0; s < c.s; ++s) {
          const int h = p * c.stride - c.pad_h + r, w = q * c.stride - c.pad_w + s;
          if (h < 0 || w < 0 || h >= c.h || w >= c.w) continue;
          acc += double(float(buf.hx[n * prm.x_stride[0] + ch * prm.x_stride[1] +
                                     h * prm.x_stride[2] + w * prm.x_stride[3]])) *
                 double(float(buf.hw[k * prm.weight_stride[0] + ch * prm.weight_stride[1] +
                                     r * prm.weight_stride[2] + s * prm.weight_stride[3]]));
        }
    if (c.relu && acc < 0) acc = 0;
    const double d = double(float(first[Buffers<T>::kGuard + j])) - acc;
    num += d * d, den += acc * acc;
  }
  const double error = std::sqrt(num / den);
  const bool ok = error < (dtype == Dtype::bf16 ? 5e-3 : 1e-3) && guards && same;
  std::printf("%s n%d %dx%d K%d %dx%d/%d pad %d,%d %s%s%s: error %.2e guards %d repeat %d %s\n",
              name, c.n, c.h, c.w, c.k, c.r, c.s, c.stride, c.pad_h, c.pad_w,
              c.nhwc ? "nhwc" : "nchw", c.relu ? " relu" : "", c.bias ? " bias" : "", error, guards,
              same, ok ? "ok" : "BAD");
  std::fflush(stdout);
  return ok;
}

// Median of single launches with the L2 flushed before each.
static void time_case(const Case& c) {
  Buffers<__nv_bfloat16> buf(c);
  const StemParams prm =
      params_of(c, buf.x, buf.w, buf.b, buf.y + Buffers<__nv_bfloat16>::kGuard, Dtype::bf16);
  void* flush;
  CUDA_OK(cudaMalloc(&flush, 256 << 20));
  std::vector<float> times;
  cudaEvent_t start, stop;
  cudaEventCreate(&start), cudaEventCreate(&stop);
  for (int i = 0; i < 60; ++i) {
    CUDA_OK(cudaMemsetAsync(flush, i, 256 << 20));
    cudaEventRecord(start);
    CUDA_OK(launch_conv2d_stem_sm90(prm, nullptr));
    cudaEventRecord(stop);
    CUDA_OK(cudaEventSynchronize(stop));
    float ms;
    cudaEventElapsedTime(&ms, start, stop);
    if (i >= 10) times.push_back(ms * 1e3f);
  }
  std::sort(times.begin(), times.end());
  const double bytes = 2.0 * (buf.nx + buf.nw + buf.ny);
  std::printf(
      "time bf16 n%d %dx%d K%d %dx%d/%d %s: median %.1f us (p5 %.1f p95 %.1f), %.0f GB/s of "
      "minimal bytes\n",
      c.n, c.h, c.w, c.k, c.r, c.s, c.stride, c.nhwc ? "nhwc" : "nchw", times[25], times[2],
      times[47], bytes / times[25] * 1e-3);
  cudaFree(flush);
}

int main(int argc, char** argv) {
  if (argc > 1) {
    for (int n : {64, 256})
      for (bool nhwc : {true, false}) {
        time_case({n, 224, 224, 64, 7, 7, 2, 3, 3, nhwc, true, true});
        time_case({n, 227, 227, 96, 11, 11, 4, 0, 0, nhwc, true, true});
        time_case({n, 224, 224, 64, 3, 3, 1, 1, 1, nhwc, true, true});
      }
    return 0;
  }
  const Case cases[] = {
      {2, 32, 32, 64, 7, 7, 2, 3, 3, true, true, true},
      {1, 61, 45, 64, 7, 7, 2, 3, 2, false, false, true},
      {1, 227, 227, 96, 11, 11, 4, 0, 0, true, true, true},
      {2, 63, 70, 64, 11, 11, 4, 2, 2, false, true, false},
      {3, 30, 33, 64, 3, 3, 1, 1, 1, true, true, true},
      {1, 17, 250, 128, 3, 3, 1, 1, 0, false, false, false},
      {1, 9, 240, 40, 3, 3, 2, 1, 1, true, true, true},
      {150, 8, 8, 64, 3, 3, 1, 0, 1, true, true, true},
      {2, 40, 24, 96, 7, 7, 2, 1, 1, true, true, true},
      {1, 5, 7, 8, 1, 3, 1, 0, 1, false, true, true},
  };
  int bad = 0;
  for (const Case& c : cases) {
    bad += !check<__nv_bfloat16>(c, Dtype::bf16, "bf16");
    bad += !check<__half>(c, Dtype::f16, "fp16");
  }
  std::printf("%d failed\n", bad);
  return bad != 0;
}
