// Arguments of the LRN bindings: shape and checks.
#pragma once

#include "common/tensor.h"
#include "plan/lrn.h"

namespace cnnkernels {

inline LrnShape lrn_shape(const Tensor& x, int64_t size, double alpha, double beta, double k,
                          bool relu) {
  STD_TORCH_CHECK(size >= 1 && size <= 2048, "size must be between 1 and 2048, got ", size);
  LrnShape s;
  s.n = x.size(0), s.c = x.size(1), s.pixels = x.size(2) * x.size(3);
  s.size = static_cast<int>(size);
  s.alpha = alpha, s.beta = beta, s.k = k, s.relu = relu;
  return s;
}

// bias: [C], contiguous, x's dtype. Returns its data, or nullptr where there is none.
inline const void* bias_data(const Tensor& x, const std::optional<Tensor>& bias) {
  if (!bias) return nullptr;
  check_same_device(x, *bias, "bias");
  STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == x.size(1) && bias->is_contiguous() &&
                      bias->scalar_type() == x.scalar_type(),
                  "bias must be contiguous, of x's dtype and shape [", x.size(1), "], got ",
                  to_string(*bias));
  return bias->data_ptr();
}

inline void check_like(const Tensor& x, const Tensor& grad) {
  check_same_device(x, grad, "grad");
  bool same = grad.dim() == x.dim() && grad.scalar_type() == x.scalar_type();
  for (int64_t d = 0; same && d < x.dim(); ++d) same = grad.size(d) == x.size(d);
  STD_TORCH_CHECK(same, "grad must have x's shape and dtype; shapes ", to_string(grad), " and ",
                  to_string(x));
}

}  // namespace cnnkernels
