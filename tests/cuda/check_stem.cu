// Stand-alone check of the stem convolutions (no torch): random inputs against an fp64 CPU
// reference, NaN-poisoned outputs with guard zones, repetition bit-equal. "time": timings; "small":
// small problems only; "verified" or "new": only the kernels that a GPU has, or has not, run
// before.
//   nvcc -O3 -std=c++17 -Icsrc --expt-relaxed-constexpr -gencode arch=compute_90a,code=sm_90a \
//        tests/cuda/check_stem.cu csrc/conv2d/conv2d_stem_sm90.cu \
//        csrc/conv2d/conv2d_stem_any_sm90.cu -o check_stem && compute-sanitizer ./check_stem
#include "stem_cases.h"

using namespace cnnkernels;

#define CUDA_OK(call)                                        \
  do {                                                       \
    cudaError_t e = (call);                                  \
    if (e != cudaSuccess) {                                  \
      std::printf("%s: %s\n", #call, cudaGetErrorString(e)); \
      std::exit(2);                                          \
    }                                                        \
  } while (0)

struct OnDevice {
  static constexpr size_t kGuard = 8192;  // bytes
  StemParams prm;
  void *x, *w, *b;
  uint8_t* y;
  size_t y_bytes;

  explicit OnDevice(const StemData& data) : prm(data.prm), y_bytes(data.output_bytes()) {
    x = copy(data.x), w = copy(data.w), b = copy(data.b);
    CUDA_OK(cudaMalloc(&y, y_bytes + 2 * kGuard));
    prm.x = x, prm.weight = w, prm.bias = data.c.bias ? b : nullptr, prm.y = y + kGuard;
  }
  ~OnDevice() { cudaFree(x), cudaFree(w), cudaFree(b), cudaFree(y); }

 private:
  static void* copy(const std::vector<uint8_t>& bytes) {
    void* p;
    CUDA_OK(cudaMalloc(&p, bytes.size() + 16));
    CUDA_OK(cudaMemcpy(p, bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
    return p;
  }
};

static bool check(const StemCase& c, Dtype dtype, StemInput input, size_t samples) {
  const StemData data(c, dtype, input);
  OnDevice on(data);
  constexpr size_t kGuard = OnDevice::kGuard;
  std::vector<uint8_t> first(on.y_bytes + 2 * kGuard), again(first.size());
  for (auto* out : {&first, &again}) {
    CUDA_OK(cudaMemset(on.y, 0xff, out->size()));  // NaN
    CUDA_OK(launch_conv2d_stem_sm90(on.prm, nullptr));
    CUDA_OK(cudaDeviceSynchronize());
    CUDA_OK(cudaMemcpy(out->data(), on.y, out->size(), cudaMemcpyDeviceToHost));
  }
  bool guards = true;
  for (size_t i = 0; i < kGuard; ++i)
    guards &= first[i] == 0xff && first[first.size() - 1 - i] == 0xff;
  const bool same = first == again;
  const std::string remarks =
      std::string(guards ? "" : " GUARDS OVERWRITTEN") + (same ? "" : " NOT REPEATABLE");
  return data.right(first.data() + kGuard, samples, remarks.c_str(), guards && same);
}

#ifndef CNNKERNELS_EMULATED
// Median of single launches with the L2 flushed before each.
static void time_case(const StemCase& c, Dtype dtype, StemInput input) {
  const StemData data(c, dtype, input);
  OnDevice on(data);
  void* flush;
  CUDA_OK(cudaMalloc(&flush, 256 << 20));
  std::vector<float> times;
  cudaEvent_t start, stop;
  cudaEventCreate(&start), cudaEventCreate(&stop);
  for (int i = 0; i < 60; ++i) {
    CUDA_OK(cudaMemsetAsync(flush, i, 256 << 20));
    cudaEventRecord(start);
    CUDA_OK(launch_conv2d_stem_sm90(on.prm, nullptr));
    cudaEventRecord(stop);
    CUDA_OK(cudaEventSynchronize(stop));
    float ms;
    cudaEventElapsedTime(&ms, start, stop);
    if (i >= 10) times.push_back(ms * 1e3f);
  }
  std::sort(times.begin(), times.end());
  const double bytes = data.x.size() + data.w.size() + data.output_bytes();
  std::printf("time %s: median %.1f us (p5 %.1f p95 %.1f), %.0f GB/s of minimal bytes\n",
              data.name().c_str(), times[25], times[2], times[47], bytes / times[25] * 1e-3);
  std::fflush(stdout);
  cudaFree(flush);
}

static void time_all() {
  constexpr auto kSame = StemInput::same;
  for (int n : {64, 256}) {
    const StemCase resnet = {n, 224, 224, 64, 7, 7, 2, 3, 3, true, true, true};
    const StemCase alexnet = {n, 227, 227, 96, 11, 11, 4, 0, 0, true, true, true};
    const StemCase vgg = {n, 224, 224, 64, 3, 3, 1, 1, 1, true, true, true};
    StemCase resnet_pool = resnet, googlenet_pool = resnet;
    resnet_pool.pool_pad = 1;
    googlenet_pool.pool_pad = 0, googlenet_pool.ceil_mode = true;
    const StemCase alexnet_pool = {n, 224, 224, 64, 11, 11, 4, 2, 2, true, true, true, 0};
    const StemCase zfnet_pool = {n, 224, 224, 96, 7, 7, 2, 1, 1, true, true, true, 1};
    for (Dtype dtype : {Dtype::bf16, Dtype::f32}) {
      for (StemCase c : {resnet, alexnet, vgg}) {
        time_case(c, dtype, kSame);
        c.nhwc = false;
        if (n == 64) time_case(c, dtype, kSame);
      }
      for (const StemCase& c : {resnet_pool, googlenet_pool, alexnet_pool, zfnet_pool})
        time_case(c, dtype, kSame);
    }
    for (const StemCase& c : {resnet, alexnet, vgg, resnet_pool})
      for (StemInput input : {StemInput::u8, StemInput::f32}) time_case(c, Dtype::bf16, input);
  }
}
#endif

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
#ifndef CNNKERNELS_EMULATED
  if (mode == "time") return time_all(), 0;
#endif
  const std::vector<StemCase> small_plain = {
      {2, 20, 22, 40, 7, 7, 2, 3, 3, true, true, true},
      {1, 17, 15, 64, 7, 7, 2, 3, 2, false, false, true},
      {1, 12, 240, 72, 7, 7, 2, 3, 3, true, true, false},  // three segments
      {2, 31, 26, 96, 11, 11, 4, 2, 1, true, true, true},
      {1, 27, 33, 64, 11, 11, 4, 0, 0, false, false, true},
      {2, 9, 13, 64, 3, 3, 1, 1, 1, true, true, true},
      {1, 5, 7, 8, 1, 3, 1, 0, 1, false, true, true},
      {1, 4, 230, 80, 3, 3, 1, 1, 0, false, false, true},
      {40, 3, 13, 16, 3, 3, 1, 0, 1, false, true, true},  // one row: warpgroup 1 has no work
  };
  const std::vector<StemCase> small_pooled = {
      {2, 22, 23, 64, 7, 7, 2, 3, 3, true, true, true, 1},          // ResNet's
      {1, 21, 26, 40, 7, 7, 2, 3, 3, false, false, true, 0, true},  // GoogLeNet's
      {1, 30, 20, 96, 7, 7, 2, 1, 1, true, true, true, 1},          // ZFNet's
      {2, 39, 43, 64, 11, 11, 4, 2, 2, false, true, true, 0},       // AlexNet's
      {1, 60, 47, 72, 11, 11, 4, 0, 2, true, false, false, 1, true},
      {1, 14, 250, 8, 7, 7, 2, 3, 3, true, false, true, 1, true},  // several segments
      {1, 11, 240, 64, 8, 5, 2, 3, 2, false, true, true, 0, true},
      {1, 7, 8, 64, 7, 7, 2, 3, 3, true, true, false, 0, true},
  };
  const std::vector<StemCase> large_plain = {
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
  const std::vector<StemCase> large_pooled = {
      {2, 224, 224, 64, 7, 7, 2, 3, 3, true, true, true, 1},          // ResNet's
      {2, 224, 224, 64, 7, 7, 2, 3, 3, false, false, true, 0, true},  // GoogLeNet's
      {1, 224, 224, 96, 7, 7, 2, 1, 1, true, true, true, 1},          // ZFNet's
      {3, 224, 224, 64, 11, 11, 4, 2, 2, false, true, true, 0},       // AlexNet's
      {1, 60, 47, 72, 11, 11, 4, 0, 2, true, false, false, 1, true},
      {1, 14, 250, 8, 7, 7, 2, 3, 3, true, false, true, 1, true},  // several segments
      {200, 11, 40, 64, 8, 5, 2, 3, 2, false, true, true, 0, true},
      {1, 7, 8, 64, 7, 7, 2, 3, 3, true, true, false, 0, true},
  };
  const bool small = mode == "small";
  const auto& plain = small ? small_plain : large_plain;
  const auto& pooled = small ? small_pooled : large_pooled;
  int bad = 0, ran = 0;
  auto run = [&](const StemCase& c, Dtype dtype, StemInput input) {
    const bool verified = problem_of(c, dtype, input).verified();
    if (mode == (verified ? "new" : "verified")) return;
    bad += !check(c, dtype, input, small ? size_t(-1) : 4000), ++ran;
  };
  for (Dtype dtype : {Dtype::bf16, Dtype::f16, Dtype::f32}) {
    for (const StemCase& c : plain) run(c, dtype, StemInput::same);
    for (const StemCase& c : pooled) run(c, dtype, StemInput::same);
    if (dtype == Dtype::f32) continue;
    for (StemInput input : {StemInput::f32, StemInput::u8}) {
      for (const StemCase& c : plain) run(c, dtype, input);
      run(pooled[dtype == Dtype::f16], dtype, input);
      run(pooled[3], dtype, input);
    }
  }
  std::printf("%d ran, %d failed\n", ran, bad);
  return bad != 0 || ran == 0;
}
