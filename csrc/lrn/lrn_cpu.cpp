// Local response normalisation on the CPU: leaf ops cnnkernels::_lrn_cpu and _lrn_backward_cpu.
// Threads take runs of pixels; the loops are in common/cpu_lrn.h.
#include "common/cpu_lrn.h"

namespace cnnkernels {
namespace {

constexpr int64_t kRun = 512;  // pixels per run in NCHW: the rings of 5 rows fit in L1

// Twice that where it leaves every thread two runs: longer rows outweigh the L2 cache.
int64_t plane_run(const Tensor& x) {
  const int64_t pixels = x.size(0) * x.size(2) * x.size(3);
  return pixels >= 4 * kRun * torch::stable::get_num_threads() ? 2 * kRun : kRun;
}

// Calls run(n, first pixel, pixels) for runs of pixels of x's images, in parallel.
template <class F>
void for_runs(const Tensor& x, int64_t run_length, const F& make) {
  const int64_t n = x.size(0), hw = x.size(2) * x.size(3), c = x.size(1);
  if (n * hw * c == 0) return;
  const int64_t runs = (hw + run_length - 1) / run_length;
  const int64_t grain = std::max<int64_t>(1, 32768 / (std::min(run_length, hw) * c));
  torch::stable::parallel_for(0, n * runs, grain, [&](int64_t begin, int64_t end) {
    auto run = make();
    with_isa([&](auto) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i % runs * run_length;
        run(i / runs, first, std::min(run_length, hw - first));
      }
    });
  });
}

Tensor lrn_cpu(const Tensor& x, const std::optional<Tensor>& bias, int64_t size, double alpha,
               double beta, double k, bool relu) {
  const Layout layout = layout_of(x, "x");
  const LrnParams p = lrn_params(x, bias, size, alpha, beta, k, relu);
  Tensor out = empty_same(x);
  const int64_t hw = x.size(2) * x.size(3);
  dispatch_cpu(dtype_of(x, "x"), [&](auto zero) {
    using T = decltype(zero);
    const auto* in = static_cast<const T*>(x.data_ptr());
    const auto* b = bias ? static_cast<const T*>(bias->data_ptr()) : nullptr;
    auto* o = static_cast<T*>(out.data_ptr());
    for_runs(x, layout == Layout::nhwc ? 64 : plane_run(x), [&] {
      return [&, lrn = LrnForward<T>(p)](int64_t n, int64_t first, int64_t count) mutable {
        const int64_t image = n * p.channels * hw;
        if (layout == Layout::nhwc)
          lrn.pixels(in + image + first * p.channels, b, o + image + first * p.channels, count);
        else
          lrn.planes(in + image + first, hw, b, o + image + first, hw, count);
      };
    });
  });
  return out;
}

Tensor lrn_backward_cpu(const Tensor& grad, const Tensor& x, const std::optional<Tensor>& bias,
                        int64_t size, double alpha, double beta, double k, bool relu) {
  const Layout layout = layout_of(x, "x");
  const LrnParams p = lrn_params(x, bias, size, alpha, beta, k, relu);
  check_same_layout(grad, x, "grad");
  Tensor dx = empty_same(x);
  const int64_t hw = x.size(2) * x.size(3);
  dispatch_cpu(dtype_of(x, "x"), [&](auto zero) {
    using T = decltype(zero);
    const auto* g = static_cast<const T*>(grad.data_ptr());
    const auto* in = static_cast<const T*>(x.data_ptr());
    const auto* b = bias ? static_cast<const T*>(bias->data_ptr()) : nullptr;
    auto* o = static_cast<T*>(dx.data_ptr());
    for_runs(x, layout == Layout::nhwc ? 64 : kRun / 2, [&] {
      return [&, lrn = LrnBackward<T>(p)](int64_t n, int64_t first, int64_t count) mutable {
        const int64_t image = n * p.channels * hw;
        if (layout == Layout::nhwc) {
          const int64_t at = image + first * p.channels;
          lrn.pixels_backward(g + at, in + at, b, o + at, count);
        } else {
          const int64_t at = image + first;
          lrn.planes_backward(g + at, hw, in + at, hw, b, o + at, hw, count);
        }
      };
    });
  });
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cnnkernels, m) {
  m.def(
      "_lrn_cpu(Tensor x, Tensor? bias, int size, float alpha, float beta, float k, bool relu) -> "
      "Tensor");
  m.def(
      "_lrn_backward_cpu(Tensor grad, Tensor x, Tensor? bias, int size, float alpha, float beta, "
      "float k, bool relu) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(cnnkernels, CPU, m) {
  m.impl("_lrn_cpu", TORCH_BOX(&lrn_cpu));
  m.impl("_lrn_backward_cpu", TORCH_BOX(&lrn_backward_cpu));
}

}  // namespace cnnkernels
