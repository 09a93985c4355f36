// The stem kernels on the host, thread by thread (emulate/machine.h), against the definition in
// fp64: gather, swizzle, operand descriptors, ring and barriers, pooling, stores.
//   g++ -std=c++20 -O2 -pthread -Itests/cuda/emulate -Itests/cuda -Icsrc -I$CUDA_HOME/include
//       -include machine.h tests/cuda/emulate_stem.cpp -o emulate_stem && ./emulate_stem [WORD...]
#include "conv2d/conv2d_stem_launch.cuh"
#include "stem_cases.h"

using namespace cnnkernels;

static std::string only;  // runs the cases of this kind
static int bad = 0, ran = 0;

template <class G, class Reads>
static void run(const StemData& data, int sms) {
  constexpr size_t kGuard = 1024;
  if (plan::stem_shape(data.prm).shared_bytes() != G::kShape.shared_bytes())
    machine::fail("the planner names another instance");
  // Exact allocations: an address sanitizer sees reads before and after them.
  std::vector<uint8_t> y(data.output_bytes() + 2 * kGuard, 0xff);
  StemParams prm = data.prm;
  prm.x = data.x.data(), prm.weight = data.w.data(),
  prm.bias = data.c.bias ? data.b.data() : nullptr;
  prm.y = y.data() + kGuard;
  StemKernelParams k{};
  CUtensorMap map;
  if (stem_prepare<G>(prm, sms, k, map) != cudaSuccess) machine::fail("no tensor map");
  machine::launch(plan::stem_grid(k, sms), G::kThreads, G::kShape.shared_bytes(),
                  [&] { conv2d_stem_kernel<G, Reads>(map, k); });
  bool guards = true;
  for (size_t i = 0; i < kGuard; ++i) guards &= y[i] == 0xff && y[y.size() - 1 - i] == 0xff;
  bad += !data.right(y.data() + kGuard, size_t(-1), guards ? "" : " GUARDS OVERWRITTEN", guards);
  ++ran;
}

template <class T, int kStride, int kTaps, int kPixels, int kMTiles>
static void same(const StemData& data, int sms) {
  using G = StemGeometry<T, kStride, kTaps, kPixels, kMTiles, false>;
  data.c.nhwc ? run<G, StemReadsSame<true>>(data, sms) : run<G, StemReadsSame<false>>(data, sms);
}

template <class T>
static void dispatch(const StemData& data, int sms) {
  const auto& prm = data.prm;
  if (prm.verified()) {
    if constexpr (sizeof(T) == 2) {
      const bool two = prm.k > 64;
      if (prm.stride == 1)
        two ? same<T, 1, 3, 112, 2>(data, sms) : same<T, 1, 3, 224, 1>(data, sms);
      else if (prm.stride == 2)
        two ? same<T, 2, 4, 112, 2>(data, sms) : same<T, 2, 4, 112, 1>(data, sms);
      else
        two ? same<T, 4, 3, 56, 2>(data, sms) : same<T, 4, 3, 56, 1>(data, sms);
    }
  } else if (prm.stride == 1) {
    run<StemGeometry<T, 1, 3, 224, 1, false>, StemReadsAny>(data, sms);
  } else if (prm.stride == 2) {
    prm.pool ? run<StemGeometry<T, 2, 4, 112, 1, true>, StemReadsAny>(data, sms)
             : run<StemGeometry<T, 2, 4, 112, 1, false>, StemReadsAny>(data, sms);
  } else {
    prm.pool ? run<StemGeometry<T, 4, 3, 56, 1, true>, StemReadsAny>(data, sms)
             : run<StemGeometry<T, 4, 3, 56, 1, false>, StemReadsAny>(data, sms);
  }
}

static void check(const char* kind, const StemCase& c, Dtype dtype, StemInput input, int sms) {
  if (!only.empty() && only != kind) return;
  const StemData data(c, dtype, input);
  if (const char* reason = plan::stem_why_not(data.prm)) machine::fail(reason);
  if (dtype == Dtype::f32) dispatch<float>(data, sms);
  if (dtype == Dtype::f16) dispatch<__half>(data, sms);
  if (dtype == Dtype::bf16) dispatch<__nv_bfloat16>(data, sms);
}

int main(int argc, char** argv) {
  if (argc > 1) only = argv[1];
  const StemCase plain[] = {
      {2, 20, 22, 40, 7, 7, 2, 3, 3, true, true, true},
      {1, 17, 15, 64, 7, 7, 2, 3, 2, false, false, true},
      {1, 12, 240, 72, 7, 7, 2, 3, 3, true, true, false},  // three segments
      {2, 31, 26, 96, 11, 11, 4, 2, 1, true, true, true},
      {1, 27, 33, 64, 11, 11, 4, 0, 0, false, false, true},
      {2, 9, 13, 64, 3, 3, 1, 1, 1, true, true, true},
      {1, 5, 7, 8, 1, 3, 1, 0, 1, false, true, true},
      {1, 4, 230, 80, 3, 3, 1, 1, 0, false, false, true},
  };
  for (const StemCase& c : plain) {
    check("plain", c, Dtype::bf16, StemInput::same, 3);
    check("plain", c, Dtype::f16, StemInput::same, 2);
    check("tf32", c, Dtype::f32, StemInput::same, 3);
    check("input", c, Dtype::bf16, StemInput::f32, 3);
    check("input", c, Dtype::f16, StemInput::u8, 2);
    check("input", c, Dtype::bf16, StemInput::u8, 4);
    check("input", c, Dtype::f16, StemInput::f32, 3);
  }
  const StemCase pooled[] = {
      {2, 22, 23, 64, 7, 7, 2, 3, 3, true, true, true, 1},          // ResNet's
      {1, 21, 26, 40, 7, 7, 2, 3, 3, false, false, true, 0, true},  // GoogLeNet's
      {1, 30, 20, 96, 7, 7, 2, 1, 1, true, true, true, 1},          // ZFNet's
      {2, 39, 43, 64, 11, 11, 4, 2, 2, false, true, true, 0},       // AlexNet's
      {1, 60, 47, 72, 11, 11, 4, 0, 2, true, false, false, 1, true},
      {1, 14, 250, 8, 7, 7, 2, 3, 3, true, false, true, 1, true},  // several segments
      {1, 11, 240, 64, 8, 5, 2, 3, 2, false, true, true, 0, true},
      {1, 7, 8, 64, 7, 7, 2, 3, 3, true, true, false, 0, true},
      {1, 224, 224, 64, 7, 7, 2, 3, 3, true, false, true, 1},
  };
  for (const StemCase& c : pooled)
    for (Dtype dtype : {Dtype::bf16, Dtype::f16, Dtype::f32}) {
      if (c.h == 224 && (dtype != Dtype::bf16 || only != "full")) continue;
      const char* kind = c.h == 224 ? "full" : "pool";
      check(kind, c, dtype, StemInput::same, 3);
      if (dtype == Dtype::bf16 && c.h < 224) check(kind, c, dtype, StemInput::u8, 2);
    }
  std::printf("%d ran, %d failed\n", ran, bad);
  return bad != 0 || ran == 0;
}
