// Stand-alone check of the convolution kernels (no torch): every instance that takes a case,
// against an fp64 CPU reference at sampled outputs; NaN-poisoned outputs, guard zones and foreign
// channels untouched, two runs bit-equal. Arguments: dtypes ("bf16", "f16", "f32"; all when none is
// named), "small" for the cheap cases only, limit=N for those up to N multiplications,
// instance=TEXT for instances with TEXT in their names, "rings" to run igemm instances again with
// fewer stages, buffers and blocks than planned, which must give the same bits.
//   nvcc -O3 -std=c++17 --expt-relaxed-constexpr -Icsrc -gencode arch=compute_90a,code=sm_90a \
//        tests/cuda/check_conv2d.cu csrc/conv2d/conv2d_*_sm90.cu -o check_conv2d
//   compute-sanitizer --tool memcheck ./check_conv2d bf16 small   # racecheck, synccheck likewise
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "conv2d/conv2d.h"
#include "conv2d_cases.h"

using namespace cnnkernels;

#define CUDA_OK(call)                                        \
  do {                                                       \
    cudaError_t e = (call);                                  \
    if (e != cudaSuccess) {                                  \
      std::printf("%s: %s\n", #call, cudaGetErrorString(e)); \
      std::exit(2);                                          \
    }                                                        \
  } while (0)

static float uniform() { return static_cast<float>(rand()) / RAND_MAX * 2 - 1; }
static double value(__nv_bfloat16 v) { return __bfloat162float(v); }
static double value(__half v) { return __half2float(v); }
static double value(float v) { return v; }

template <class T>
struct Device {
  T* p = nullptr;
  size_t count;
  explicit Device(size_t n) : count(n) { CUDA_OK(cudaMalloc(&p, n * sizeof(T))); }
  explicit Device(const std::vector<T>& v) : Device(v.size()) {
    CUDA_OK(cudaMemcpy(p, v.data(), count * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Device() { cudaFree(p); }
};

template <class T>
std::vector<T> random_vector(size_t n, float scale) {
  std::vector<T> v(n);
  for (T& e : v) e = T(uniform() * scale);
  return v;
}

template <class T>
int check_case(const Case& t, Dtype dtype, double tolerance, const char* only, bool rings) {
  constexpr size_t kGuard = 4096;
  plan::ConvProblem x;
  x.n = t.n, x.c = t.c, x.h = t.h, x.w = t.w, x.k = t.k, x.r = t.r, x.s = t.s;
  x.stride_h = x.stride_w = t.stride;
  x.pad_h = t.r > 1 ? t.pad : 0, x.pad_w = t.s > 1 ? t.pad : 0;
  x.dilation_h = x.dilation_w = t.dilation;
  x.groups = t.groups, x.residual = t.residual, x.pool = t.pool, x.dtype = dtype;
  x.two_outputs = t.split > 0;
  if (t.shortcut_c) {  // its last row and column are read only where the stride is 1
    x.shortcut_c = t.shortcut_c, x.shortcut_stride_h = x.shortcut_stride_w = t.shortcut_stride;
    x.shortcut_h = x.p() * t.shortcut_stride, x.shortcut_w = x.q() * t.shortcut_stride;
  }
  const int window = t.pool ? 2 : 1;  // each output is the largest of window x window
  const int p = x.p() / window, q = x.q() / window, pitch = t.k + t.extra, cg = t.c / t.groups,
            kg = t.k / t.groups;
  const size_t pixels = size_t(t.n) * p * q, second = kGuard + pixels * pitch + kGuard;
  const int second_pitch = t.split ? t.k - t.split + 24 : 0, second_offset = t.split ? 16 : 0;
  const size_t total = second + pixels * second_pitch + kGuard;
  const int in_pitch = t.c + t.input_extra, in_offset = t.input_extra / 2 / 8 * 8;
  const auto hx = random_vector<T>(size_t(t.n) * t.h * t.w * in_pitch, 1);
  const auto hx2 = random_vector<T>(
      size_t(t.n) * x.shortcut_h * x.shortcut_w * (t.shortcut_c + t.input_extra) + 8, 1);
  const auto hw2 = random_vector<T>(size_t(t.k) * t.shortcut_c + 8, 0.1f);
  const auto hw = random_vector<T>(size_t(t.k) * t.r * t.s * cg, 0.1f);
  const auto hb = random_vector<T>(t.k, 1), hz = random_vector<T>(pixels * t.k, 1);
  Device<T> dx(hx), dw(hw), db(hb), dz(hz), dx2(hx2), dw2(hw2), dy(total);
  const int offset = t.extra / 2 / 8 * 8;
  ConvParams params{x,
                    dx.p + in_offset,
                    dw.p,
                    t.bias ? db.p : nullptr,
                    t.residual ? dz.p : nullptr,
                    dy.p + kGuard + offset,
                    pitch,
                    t.relu,
                    in_pitch};
  params.shortcut_input = dx2.p + in_offset, params.shortcut_weight = dw2.p;
  params.shortcut_pitch = t.shortcut_c + t.input_extra;
  params.split = t.split, params.second_pitch = second_pitch;
  params.second_output = dy.p + second + second_offset;
  auto place = [&](size_t m, int k) {  // of output (m, k) in dy
    return t.split && k >= t.split ? second + m * second_pitch + second_offset + k - t.split
                                   : kGuard + m * pitch + offset + k;
  };
  std::vector<bool> inside(total);
  for (size_t m = 0; m < pixels; ++m)
    for (int k = 0; k < t.k; ++k) inside[place(m, k)] = true;

  std::vector<size_t> samples;
  std::vector<double> expected;
  for (int i = 0; i < 3000; ++i) {
    const size_t j = (size_t(rand()) * 32768 + rand()) % (pixels * t.k);
    const int k = j % t.k;
    const size_t m = j / t.k;
    const int ow = m % q, oh = m / q % p, n = m / q / p;
    double best = -1e300;
    for (int i = 0; i < window * window; ++i) {
      double acc = t.bias ? value(hb[k]) : 0;
      for (int r = 0; r < t.r; ++r)
        for (int s = 0; s < t.s; ++s) {
          const int h = (oh * window + i / 2) * t.stride - x.pad_h + r * t.dilation;
          const int w = (ow * window + i % 2) * t.stride - x.pad_w + s * t.dilation;
          if (h < 0 || w < 0 || h >= t.h || w >= t.w) continue;
          const size_t from =
              ((size_t(n) * t.h + h) * t.w + w) * in_pitch + in_offset + k / kg * cg;
          const size_t filter = ((size_t(k) * t.r + r) * t.s + s) * cg;
          for (int c = 0; c < cg; ++c) acc += value(hx[from + c]) * value(hw[filter + c]);
        }
      best = std::max(best, acc);
    }
    if (t.shortcut_c) {
      const size_t row = size_t(n) * x.shortcut_h + oh * t.shortcut_stride;
      const size_t from = (row * x.shortcut_w + ow * t.shortcut_stride) * params.shortcut_pitch;
      for (int c = 0; c < t.shortcut_c; ++c)
        best += value(hx2[from + in_offset + c]) * value(hw2[size_t(k) * t.shortcut_c + c]);
    }
    if (t.residual) best += value(hz[j]);
    if (t.relu && best < 0) best = 0;
    samples.push_back(place(m, k)), expected.push_back(best);
  }

  int bad = 0;
  for (const plan::Instance& instance : plan::kInstances) {
    if (!plan::plan_instance(x.group(), instance, 132).why_not.empty()) continue;
    if (std::strstr(instance.name, only) == nullptr) continue;
    std::vector<T> first(total), again(total);
    auto run = [&](std::vector<T>* out, auto launch) {
      CUDA_OK(cudaMemset(dy.p, 0xff, total * sizeof(T)));  // NaN
      const cudaError_t launched = launch();
      const cudaError_t ran = cudaDeviceSynchronize();
      if (launched != cudaSuccess || ran != cudaSuccess) {
        std::printf("%s: launch %s, run %s\n", instance.name, cudaGetErrorString(launched),
                    cudaGetErrorString(ran));
        std::exit(3);
      }
      CUDA_OK(cudaMemcpy(out->data(), dy.p, total * sizeof(T), cudaMemcpyDeviceToHost));
    };
    auto equal = [&] { return !std::memcmp(first.data(), again.data(), total * sizeof(T)); };
    run(&first, [&] { return launch_conv2d_sm90(params, &instance, nullptr); });
    run(&again, [&] { return launch_conv2d_sm90(params, &instance, nullptr); });
    bool same = equal();
    const plan::ConvPlan planned = plan::plan_instance(x, instance, 132);
    const int least = t.residual ? 2 : 1;  // a residual's buffer is free one store later
    if (rings && instance.family == plan::Family::igemm && instance.split == 1 && t.groups == 1)
      for (int i = 0; i < 6; ++i) {
        ConvGroup group{params, in_pitch, t.k, planned};
        group.plan.stages = 2 + i % (planned.stages - 1);
        group.plan.buffers = least + i % (planned.buffers - least + 1);
        group.plan.grid = std::min(1 + i, planned.grid);
        run(&again, [&] { return launch_conv2d_group(group, nullptr); });
        same = same && equal();
      }
    size_t foreign = 0, unwritten = 0;  // touched outside the slice, left inside it
    for (size_t i = 0; i < total; ++i) {
      const bool nan = std::isnan(value(first[i]));
      foreign += !inside[i] && !nan;
      unwritten += inside[i] && nan;
    }
    double num = 0, den = 0;
    for (size_t i = 0; i < samples.size(); ++i) {
      const double d = value(first[samples[i]]) - expected[i];
      num += d * d, den += expected[i] * expected[i];
    }
    const double error = std::sqrt(num / den);
    const bool ok = error < tolerance && same && !foreign && !unwritten;
    bad += !ok;
    std::printf(
        "%s n%d %dx%d c%d k%d %dx%d/%d p%d d%d g%d res%d pool%d slice%d shortcut%d split%d %-20s "
        "error %.2e %s%s%s%s\n",
        dtype == Dtype::bf16  ? "bf16"
        : dtype == Dtype::f16 ? "f16"
                              : "f32",
        t.n, t.h, t.w, t.c, t.k, t.r, t.s, t.stride, t.pad, t.dilation, t.groups, t.residual,
        t.pool, t.input_extra, t.shortcut_c, t.split, instance.name, error, ok ? "ok" : "BAD",
        same ? "" : " differs", foreign ? " foreign" : "", unwritten ? " unwritten" : "");
    std::fflush(stdout);
  }
  return bad;
}

#ifndef CNNKERNELS_EMULATED
// A chain of convolutions, each reading what the one before wrote, must give the same bits when
// every kernel starts before its predecessor has ended: launched one by one and from a CUDA graph.
int check_early_start() {
  int bad = 0;
  plan::ConvProblem x;
  x.n = 2, x.c = x.k = 128, x.h = x.w = 14, x.r = x.s = 3, x.pad_h = x.pad_w = 1;
  const size_t count = size_t(x.pixels()) * x.k;
  const auto hx = random_vector<__half>(count, 1);
  const auto hw = random_vector<__half>(size_t(x.k) * x.c * 9, 0.05f);
  Device<__half> dw(hw), a(hx), b(count);
  x.dtype = Dtype::f16;
  cudaStream_t stream;
  CUDA_OK(cudaStreamCreate(&stream));
  for (const plan::Instance& instance : plan::kInstances) {
    if (!plan::plan_instance(x, instance, 132).why_not.empty()) continue;
    auto enqueue = [&](bool early) {
      for (int i = 0; i < 20; ++i) {
        ConvParams params{x,       i % 2 ? b.p : a.p, dw.p, nullptr,
                          nullptr, i % 2 ? a.p : b.p, x.k,  true};
        params.early_start = early;
        CUDA_OK(launch_conv2d_sm90(params, &instance, stream));
      }
    };
    std::vector<__half> results[3];
    for (int way = 0; way < 3; ++way) {
      CUDA_OK(cudaMemcpy(a.p, hx.data(), count * 2, cudaMemcpyHostToDevice));
      if (way < 2) {
        enqueue(way == 1);
      } else {
        cudaGraph_t graph;
        cudaGraphExec_t exec;
        CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        enqueue(true);
        CUDA_OK(cudaStreamEndCapture(stream, &graph));
        CUDA_OK(cudaGraphInstantiate(&exec, graph, 0));
        CUDA_OK(cudaGraphLaunch(exec, stream));
        CUDA_OK(cudaStreamSynchronize(stream));
        CUDA_OK(cudaGraphExecDestroy(exec));
        CUDA_OK(cudaGraphDestroy(graph));
      }
      CUDA_OK(cudaStreamSynchronize(stream));
      results[way].resize(count);
      CUDA_OK(cudaMemcpy(results[way].data(), a.p, count * 2, cudaMemcpyDeviceToHost));
    }
    const bool stream_ok = !std::memcmp(results[0].data(), results[1].data(), count * 2);
    const bool graph_ok = !std::memcmp(results[0].data(), results[2].data(), count * 2);
    bad += !stream_ok + !graph_ok;
    std::printf("early start %-20s stream %s graph %s\n", instance.name, stream_ok ? "ok" : "BAD",
                graph_ok ? "ok" : "BAD");
  }
  CUDA_OK(cudaStreamDestroy(stream));
  return bad;
}
#endif

int main(int argc, char** argv) {
  auto wanted = [&](const char* name) {
    for (int i = 1; i < argc; ++i)
      if (std::strcmp(argv[i], name) == 0) return true;
    return false;
  };
  const bool all = !wanted("bf16") && !wanted("f16") && !wanted("f32");
  double limit = wanted("small") ? 3e8 : 1e300;
  const char* only = "";
  const bool rings = wanted("rings");
  for (int i = 1; i < argc; ++i) {
    if (std::strncmp(argv[i], "limit=", 6) == 0) limit = std::atof(argv[i] + 6);
    if (std::strncmp(argv[i], "instance=", 9) == 0) only = argv[i] + 9;
  }
  int bad = 0;
  for (const Case& t : kCases) {
    if (double(t.n) * t.h * t.w * t.c * t.k * t.r * t.s > limit) continue;
    if (all || wanted("bf16")) bad += check_case<__nv_bfloat16>(t, Dtype::bf16, 5e-3, only, rings);
    if (all || wanted("f16")) bad += check_case<__half>(t, Dtype::f16, 1e-3, only, rings);
    if (all || wanted("f32")) bad += check_case<float>(t, Dtype::f32, 1e-3, only, rings);
  }
#ifndef CNNKERNELS_EMULATED
  if (all || wanted("f16")) bad += check_early_start();
#endif
  std::printf(bad ? "%d BAD\n" : "all ok (%d bad)\n", bad);
  return bad != 0;
}
