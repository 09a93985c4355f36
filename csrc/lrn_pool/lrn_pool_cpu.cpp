// LRN and max-pooling in one pass on the CPU: leaf ops cnnkernels::_lrn_pool_cpu and
// _lrn_pool_backward_cpu. A thread takes a band of rows of an image: forward, the normalised rows
// of a band of windows go to a buffer that stays in the cache, and are pooled from there; backward,
// the pooling's gradient of a band of input rows goes to such a buffer, and through the LRN from
// there.
#include "common/cpu_lrn.h"
#include "common/cpu_pool.h"
#include "common/cpu_pool_backward.h"

namespace cnnkernels {
namespace {

// Rows per band whose `row_elements` elements of 4 bytes fill about half of an L2 cache.
int64_t band_rows(int64_t row_elements, int64_t rows, int64_t least) {
  const int64_t fits = 131072 / std::max<int64_t>(1, row_elements);
  return std::max<int64_t>(1, std::min(rows, std::max(least, fits)));
}

template <class F>
void for_bands(int64_t images, int64_t rows, int64_t band, const F& make) {
  const int64_t bands = (rows + band - 1) / band;
  torch::stable::parallel_for(0, images * bands, 1, [&](int64_t begin, int64_t end) {
    auto run = make();
    with_isa([&](auto isa) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i % bands * band;
        run(isa, i / bands, first, std::min(rows, first + band));
      }
    });
  });
}

template <class T, class Offset>
void forward(const Tensor& x, const T* bias, Tensor& out, Offset* offsets, const LrnParams& lrn_p,
             const PoolParams& p, bool nhwc) {
  const int64_t c = x.size(1);
  const auto* in = static_cast<const T*>(x.data_ptr());
  auto* o = static_cast<T*>(out.data_ptr());
  const int64_t band = band_rows(p.w * c * p.sh, p.oh, 2);
  for_bands(x.size(0), p.oh, band, [&] {
    return [&, lrn = LrnForward<T>(lrn_p), pool = Pool(p), rows = std::vector<T>()](
               auto isa, int64_t n, int64_t first, int64_t last) mutable {
      using Isa = decltype(isa);
      const int64_t row0 = p.first_row(first), row1 = std::max(row0, p.last_row(last));
      const int64_t pixels = (row1 - row0) * p.w;
      rows.resize(pixels * c);
      const T* image = in + n * c * p.h * p.w;
      if (nhwc) {
        lrn.pixels(image + row0 * p.w * c, bias, rows.data(), pixels);
        const int64_t at = (n * p.oh + first) * p.ow * c;
        pool.image<Isa>(rows.data(), row0, c, first, last, o + at,
                        offsets ? offsets + at : nullptr);
        return;
      }
      if (pixels > 0) lrn.planes(image + row0 * p.w, p.h * p.w, bias, rows.data(), pixels, pixels);
      for (int64_t k = 0; k < c; ++k) {
        const int64_t at = ((n * c + k) * p.oh + first) * p.ow;
        pool.plane<Isa>(rows.data() + k * pixels, row0, first, last, o + at,
                        offsets ? offsets + at : nullptr);
      }
    };
  });
}

template <class T, class Offset>
void backward(const Tensor& grad, const Tensor& x, const T* bias, const Tensor& offsets, Tensor& dx,
              const LrnParams& lrn_p, const PoolParams& p, bool nhwc) {
  const int64_t c = x.size(1);
  const auto* g = static_cast<const T*>(grad.data_ptr());
  const auto* f = static_cast<const Offset*>(offsets.data_ptr());
  const auto* in = static_cast<const T*>(x.data_ptr());
  auto* to = static_cast<T*>(dx.data_ptr());
  const int64_t band = nhwc ? 1 : band_rows(p.w * c, p.h, 4);
  for_bands(x.size(0), p.h, band, [&] {
    return [&, lrn = LrnBackward<T>(lrn_p), pool = PoolBackward(p), sums = std::vector<float>()](
               auto isa, int64_t n, int64_t first, int64_t last) mutable {
      using Isa = decltype(isa);
      const int64_t pixels = (last - first) * p.w;
      const int64_t image = n * c * p.h * p.w, windows = n * c * p.oh * p.ow;
      sums.resize(pixels * c);
      if (nhwc) {
        const int64_t at = image + first * p.w * c;
        pool.image_row<Isa>(g + windows, f + windows, c, first, sums.data());
        lrn.pixels_backward(sums.data(), in + at, bias, to + at, pixels);
        return;
      }
      for (int64_t k = 0; k < c; ++k)
        pool.plane<Isa>(g + windows + k * p.oh * p.ow, f + windows + k * p.oh * p.ow, first, last,
                        sums.data() + k * pixels);
      const int64_t at = image + first * p.w;
      lrn.planes_backward(sums.data(), pixels, in + at, p.h * p.w, bias, to + at, p.h * p.w,
                          pixels);
    };
  });
}

std::tuple<Tensor, Tensor> lrn_pool_cpu(const Tensor& x, const std::optional<Tensor>& bias,
                                        int64_t size, double alpha, double beta, double k,
                                        bool relu, const Ints& kernel, const Ints& stride,
                                        const Ints& padding, const Ints& dilation, bool ceil_mode,
                                        bool with_offsets) {
  const Layout layout = layout_of(x, "x");
  const LrnParams lrn = lrn_params(x, bias, size, alpha, beta, k, relu);
  const PoolParams p = pool_params(x, kernel, stride, padding, dilation, ceil_mode, false);
  const bool bytes = p.taps() <= 255;
  const Ints sizes{x.size(0), x.size(1), p.oh, p.ow};
  Tensor out = empty_like_device(x, sizes, x.scalar_type(), layout);
  Tensor offsets =
      with_offsets ? empty_like_device(x, sizes, bytes ? ScalarType::Byte : ScalarType::Int, layout)
                   : empty_like_device(x, {0}, ScalarType::Byte);
  if (out.numel() == 0) return {out, offsets};
  void* f = with_offsets ? offsets.data_ptr() : nullptr;
  dispatch_cpu(dtype_of(x, "x"), [&](auto zero) {
    using T = decltype(zero);
    const auto* b = bias ? static_cast<const T*>(bias->data_ptr()) : nullptr;
    if (bytes)
      forward<T>(x, b, out, static_cast<uint8_t*>(f), lrn, p, layout == Layout::nhwc);
    else
      forward<T>(x, b, out, static_cast<int32_t*>(f), lrn, p, layout == Layout::nhwc);
  });
  return {out, offsets};
}

Tensor lrn_pool_backward_cpu(const Tensor& grad, const Tensor& x, const std::optional<Tensor>& bias,
                             const Tensor& offsets, int64_t size, double alpha, double beta,
                             double k, bool relu, const Ints& kernel, const Ints& stride,
                             const Ints& padding, const Ints& dilation) {
  const Layout layout = layout_of(x, "x");
  const LrnParams lrn = lrn_params(x, bias, size, alpha, beta, k, relu);
  Tensor dx = empty_same(x);
  if (dx.numel() == 0) return dx;
  const PoolParams p = pool_params_of_backward(x, offsets, kernel, stride, padding, dilation);
  check_same_layout(grad, offsets, "grad", /*same_dtype=*/false);
  STD_TORCH_CHECK(grad.scalar_type() == x.scalar_type(), "grad must have x's dtype");
  for (const Tensor* t : {&grad, &offsets})
    STD_TORCH_CHECK(x.is_contiguous() ? t->is_contiguous() : is_channels_last(*t),
                    "grad and offsets must be dense in x's layout");
  dispatch_cpu(dtype_of(x, "x"), [&](auto zero) {
    using T = decltype(zero);
    const auto* b = bias ? static_cast<const T*>(bias->data_ptr()) : nullptr;
    auto* run = p.taps() <= 255 ? backward<T, uint8_t> : backward<T, int32_t>;
    run(grad, x, b, offsets, dx, lrn, p, layout == Layout::nhwc);
  });
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cnnkernels, m) {
  m.def(
      "_lrn_pool_cpu(Tensor x, Tensor? bias, int size, float alpha, float beta, float k, bool "
      "relu, int[2] kernel, int[2] stride, int[2] padding, int[2] dilation, bool ceil_mode, bool "
      "with_offsets) -> (Tensor, Tensor)");
  m.def(
      "_lrn_pool_backward_cpu(Tensor grad, Tensor x, Tensor? bias, Tensor offsets, int size, float "
      "alpha, float beta, float k, bool relu, int[2] kernel, int[2] stride, int[2] padding, int[2] "
      "dilation) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(cnnkernels, CPU, m) {
  m.impl("_lrn_pool_cpu", TORCH_BOX(&lrn_pool_cpu));
  m.impl("_lrn_pool_backward_cpu", TORCH_BOX(&lrn_pool_backward_cpu));
}

}  // namespace cnnkernels
