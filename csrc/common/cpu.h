// What the CPU kernels share: dtype dispatch and checks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "common/tensor.h"

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

// Error unless other has x's shape (and dtype) and is dense in x's layout (or in both).
inline void check_same_layout(const Tensor& other, const Tensor& x, const char* name,
                              bool same_dtype = true) {
  bool same = other.dim() == x.dim() && (!same_dtype || other.scalar_type() == x.scalar_type());
  for (int64_t d = 0; same && d < x.dim(); ++d) same = other.size(d) == x.size(d);
  same = same && (x.is_contiguous() ? other.is_contiguous() : is_channels_last(other));
  STD_TORCH_CHECK(same, name, " must have the shape", same_dtype ? ", dtype" : "",
                  " and layout of the tensor beside it; shapes ", to_string(other), " and ",
                  to_string(x));
}

}  // namespace cnnkernels
