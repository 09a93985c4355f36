// What the CPU kernels share: dtype dispatch and instruction-set clones.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "common/tensor.h"

// One source, compiled for several instruction sets and chosen at load time, so that one wheel runs
// everywhere and still uses AVX2/AVX-512 where they are.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CNNKERNELS_CLONES \
  __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define CNNKERNELS_CLONES
#endif

namespace cnnkernels {

// Calls f with a zero of the C++ type of `dtype`. fp64 takes the reference path in Python.
template <class F>
void dispatch_cpu(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::f32: return f(float{});
    case Dtype::f16: return f(torch::headeronly::Half{});
    case Dtype::bf16: return f(torch::headeronly::BFloat16{});
    default: STD_TORCH_CHECK(false, "float64 has no compiled CPU kernel; use the reference path");
  }
}

}  // namespace cnnkernels
