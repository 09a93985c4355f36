// `check_mem time`: the memory-bound kernels at the shapes and types of their speed targets, each
// as a share of a device copy that moves the same number of bytes (half read, half written). Median
// of single launches with the L2 flushed before each.
#pragma once

#include <algorithm>
#include <functional>
#include <string>

#include "check.h"
#include "lrn/lrn.h"
#include "lrn_pool/lrn_pool.h"
#include "max_pool2d/max_pool2d.h"

namespace check {

using namespace cnnkernels;

struct Timer {
  static constexpr size_t kFlush = 256 << 20;
  void* flush = nullptr;
  cudaEvent_t start, stop;

  Timer() {
    cuda_ok(cudaMalloc(&flush, kFlush), "cudaMalloc");
    cudaEventCreate(&start), cudaEventCreate(&stop);
  }
  double median_us(const std::function<cudaError_t()>& launch) const {
    std::vector<float> times;
    for (int i = 0; i < 40; ++i) {
      cudaMemsetAsync(flush, i, kFlush);
      cudaEventRecord(start);
      const cudaError_t error = launch();
      cudaEventRecord(stop);
      cuda_ok(error, "launch");
      float ms;
      cudaEventElapsedTime(&ms, start, stop);
      if (i >= 10) times.push_back(ms * 1e3f);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }
};

inline void* device_memory(size_t bytes, bool random = false) {
  uint8_t* p;
  cuda_ok(cudaMalloc(&p, bytes), "cudaMalloc");
  if (!random) return p;
  const auto some = random_values<__nv_bfloat16>(1 << 20, 1);  // read as fp32 and fp16, too: finite
  std::vector<__nv_bfloat16> typed;
  for (float v : some) typed.push_back(__float2bfloat16_rn(v));
  for (size_t at = 0; at < bytes; at += 2 * some.size())
    cudaMemcpy(p + at, typed.data(), std::min(2 * some.size(), bytes - at), cudaMemcpyHostToDevice);
  return p;
}

inline void time_shape(const Timer& timer, int64_t n, int64_t c, int side, Dtype dtype) {
  const size_t size = dtype == Dtype::f32 ? 4 : 2, numel = n * c * side * side;
  void *x = device_memory(numel * size, true), *dy = device_memory(numel * size, true);
  void *y = device_memory(numel * size), *from = device_memory(numel * size * 3 / 2);
  void* to = device_memory(numel * size * 3 / 2);
  auto* offsets = static_cast<uint8_t*>(device_memory(numel));
  const char* type = dtype == Dtype::f32 ? "fp32" : dtype == Dtype::f16 ? "fp16" : "bf16";
  // Least share that is wanted, by layout.
  auto row = [&](const char* op, Layout layout, size_t bytes, int nchw, int nhwc,
                 const std::function<cudaError_t()>& launch) {
    const double us = timer.median_us(launch), copy = timer.median_us([&] {
      return cudaMemcpyAsync(to, from, bytes / 2, cudaMemcpyDeviceToDevice);
    });
    const int wanted = layout == Layout::nchw ? nchw : nhwc;
    std::printf("%-22s %s %s %ldx%ldx%d^2: %7.1f us %5.0f GB/s, %5.1f %% of copy%s\n", op,
                layout == Layout::nchw ? "NCHW" : "NHWC", type, long(n), long(c), side, us,
                bytes / us * 1e-3, 100 * copy / us,
                100 * copy / us >= wanted ? "" : (" < " + std::to_string(wanted)).c_str());
    std::fflush(stdout);
  };
  LrnShape lrn;
  lrn.n = n, lrn.c = c, lrn.pixels = int64_t{side} * side;
  for (Layout layout : {Layout::nchw, Layout::nhwc}) {
    const LrnParams forward{x, nullptr, nullptr, y, lrn, dtype, layout};
    LrnParams backward = forward;
    backward.dy = dy;
    row("LRN", layout, 2 * numel * size, 88, 92, [&] { return launch_lrn(forward, nullptr); });
    row("LRN backward", layout, 3 * numel * size, 75, 92,
        [&] { return launch_lrn_backward(backward, nullptr); });
    for (const auto& k : {std::pair{3, 2}, std::pair{2, 2}, std::pair{3, 1}}) {
      PoolShape s;
      s.n = n, s.c = c, s.h = s.w = side;
      s.kernel_h = s.kernel_w = k.first, s.stride_h = s.stride_w = k.second;
      s.pad_h = s.pad_w = k.second == 1;
      s.oh = s.ow = static_cast<int>(
          plan::pooled_size(side, k.first, k.second, s.pad_h, 1, /*ceil_mode=*/false));
      const size_t outputs = n * c * s.oh * s.ow, inputs = numel * size;
      const bool dense = k.second == 1;
      const std::string name =
          "pool " + std::to_string(k.first) + "/" + std::to_string(k.second) + " ";
      MaxPoolParams infer{x, y, nullptr, s, dtype, layout, false}, train = infer;
      train.offsets = offsets;
      row((name + "infer").c_str(), layout, inputs + outputs * size, 90, 92,
          [&] { return launch_max_pool2d(infer, nullptr); });
      row((name + "train").c_str(), layout, inputs + outputs * (size + 1), 90, dense ? 88 : 92,
          [&] { return launch_max_pool2d(train, nullptr); });
      row((name + "backward").c_str(), layout, inputs + outputs * (size + 1), dense ? 75 : 90,
          dense ? 85 : 92,
          [&] { return launch_max_pool2d_backward({dy, offsets, y, s, dtype, layout}, nullptr); });
      if (k.first != 3 || k.second != 2) continue;
      LrnShape relu_lrn = lrn;
      relu_lrn.relu = true;
      // Two kernels, one after the other, where the fused one would not pay; `to` is between them.
      row("ReLU + LRN + pool 3/2", layout, inputs + outputs * size, 0, 80, [&] {
        if (plan::lrn_pool_fuses(relu_lrn, s, dtype, layout, true))
          return launch_lrn_pool({x, nullptr, y, nullptr, relu_lrn, s, dtype, layout}, nullptr);
        const cudaError_t error =
            launch_lrn({x, nullptr, nullptr, to, relu_lrn, dtype, layout}, nullptr);
        return error ? error
                     : launch_max_pool2d({to, y, nullptr, s, dtype, layout, false}, nullptr);
      });
    }
  }
  for (void* p : {x, dy, y, from, to, static_cast<void*>(offsets)}) cudaFree(p);
}

inline void time_all() {
  const Timer timer;
  for (Dtype dtype : {Dtype::bf16, Dtype::f32, Dtype::f16}) {
    time_shape(timer, 256, 96, 55, dtype);
    if (dtype == Dtype::f16) continue;
    time_shape(timer, 256, 192, 56, dtype);
    time_shape(timer, 256, 64, 112, dtype);
  }
}

}  // namespace check
