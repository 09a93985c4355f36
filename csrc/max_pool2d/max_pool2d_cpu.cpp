// Max-pooling on the CPU: leaf ops cnnkernels::_max_pool2d_cpu and _max_pool2d_backward_cpu.
// Threads take bands of output rows (backward: of input rows) of a plane or an image, so that one
// large image keeps all of them busy; the loops are in common/cpu_pool.h.
#include "common/cpu_pool.h"
#include "common/cpu_pool_backward.h"

namespace cnnkernels {
namespace {

// Calls run(first row, last row) over `rows` rows of each of `outer` planes, in bands, in parallel;
// `row_cost` is about how many elements a row handles.
template <class F>
void for_bands(int64_t outer, int64_t rows, int64_t row_cost, const F& make) {
  const int64_t threads = torch::stable::get_num_threads();
  // Whole planes if there are enough of them, else bands; each band reduces kh - stride rows again.
  const int64_t wanted =
      outer >= 4 * threads ? 1 : (4 * threads + outer - 1) / std::max<int64_t>(outer, 1);
  const int64_t band = std::max<int64_t>(std::min<int64_t>(rows, 8), (rows + wanted - 1) / wanted);
  const int64_t bands = (rows + band - 1) / band;
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, band * row_cost));
  torch::stable::parallel_for(0, outer * bands, grain, [&](int64_t begin, int64_t end) {
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
void forward(const Tensor& x, Tensor& out, Tensor& offsets, const PoolParams& p, bool nhwc,
             bool with_offsets) {
  const int64_t n = x.size(0), c = x.size(1);
  const auto* in = static_cast<const T*>(x.data_ptr());
  auto* o = static_cast<T*>(out.data_ptr());
  auto* f = with_offsets ? static_cast<Offset*>(offsets.data_ptr()) : nullptr;
  const int64_t row = p.ow * (nhwc ? c : 1);
  for_bands(nhwc ? n : n * c, p.oh, row * 4, [&] {
    return [&, pool = Pool(p)](auto isa, int64_t i, int64_t first, int64_t last) mutable {
      using Isa = decltype(isa);
      const int64_t at = (i * p.oh + first) * row;
      T* to = o + at;
      Offset* offsets_to = f ? f + at : nullptr;
      if (nhwc)
        pool.image<Isa>(in + i * p.h * p.w * c, 0, c, first, last, to, offsets_to);
      else
        pool.plane<Isa>(in + i * p.h * p.w, 0, first, last, to, offsets_to);
    };
  });
}

std::tuple<Tensor, Tensor> max_pool2d_cpu(const Tensor& x, const Ints& kernel, const Ints& stride,
                                          const Ints& padding, const Ints& dilation, bool ceil_mode,
                                          bool relu, bool with_offsets) {
  const Layout layout = layout_of(x, "x");
  const PoolParams p = pool_params(x, kernel, stride, padding, dilation, ceil_mode, relu);
  const bool bytes = p.taps() <= 255;
  const ScalarType offset_type = bytes ? ScalarType::Byte : ScalarType::Int;
  const Ints sizes{x.size(0), x.size(1), p.oh, p.ow};
  Tensor out = empty_like_device(x, sizes, x.scalar_type(), layout);
  Tensor offsets = with_offsets ? empty_like_device(x, sizes, offset_type, layout)
                                : empty_like_device(x, {0}, ScalarType::Byte);
  if (out.numel() == 0) return {out, offsets};
  dispatch_cpu(dtype_of(x, "x"), [&](auto zero) {
    using T = decltype(zero);
    auto* run = bytes ? forward<T, uint8_t> : forward<T, int32_t>;
    run(x, out, offsets, p, layout == Layout::nhwc, with_offsets);
  });
  return {out, offsets};
}

template <class T, class Offset>
void backward(const Tensor& grad, const Tensor& offsets, Tensor& dx, const PoolParams& p,
              bool nhwc) {
  const int64_t n = dx.size(0), c = dx.size(1);
  const auto* g = static_cast<const T*>(grad.data_ptr());
  const auto* f = static_cast<const Offset*>(offsets.data_ptr());
  auto* to = static_cast<T*>(dx.data_ptr());
  const int64_t row = p.w * (nhwc ? c : 1);
  for_bands(nhwc ? n : n * c, p.h, row, [&] {
    return [&, pool = PoolBackward(p)](auto isa, int64_t i, int64_t first, int64_t last) mutable {
      using Isa = decltype(isa);
      const int64_t from = i * p.oh * p.ow * (nhwc ? c : 1);
      T* out = to + (i * p.h + first) * row;
      if (!nhwc) return pool.plane<Isa>(g + from, f + from, first, last, out);
      for (int64_t r = first; r < last; ++r, out += row)
        pool.image_row<Isa>(g + from, f + from, c, r, out);
    };
  });
}

Tensor max_pool2d_backward_cpu(const Tensor& grad, const Tensor& offsets, const Ints& input_size,
                               const Ints& kernel, const Ints& stride, const Ints& padding,
                               const Ints& dilation) {
  const Layout layout = layout_of(offsets, "offsets");
  STD_TORCH_CHECK(input_size.size() == 4, "input_size must have 4 numbers");
  Tensor dx = empty_like_device(grad, input_size, grad.scalar_type(), layout);
  if (dx.numel() == 0) return dx;
  const PoolParams p = pool_params_of_backward(dx, offsets, kernel, stride, padding, dilation);
  check_same_layout(grad, offsets, "grad", /*same_dtype=*/false);
  dispatch_cpu(dtype_of(grad, "grad"), [&](auto zero) {
    using T = decltype(zero);
    auto* run = p.taps() <= 255 ? backward<T, uint8_t> : backward<T, int32_t>;
    run(grad, offsets, dx, p, layout == Layout::nhwc);
  });
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cnnkernels, m) {
  m.def(
      "_max_pool2d_cpu(Tensor x, int[2] kernel, int[2] stride, int[2] padding, int[2] dilation, "
      "bool ceil_mode, bool relu, bool with_offsets) -> (Tensor, Tensor)");
  m.def(
      "_max_pool2d_backward_cpu(Tensor grad, Tensor offsets, int[] input_size, int[2] kernel, "
      "int[2] stride, int[2] padding, int[2] dilation) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(cnnkernels, CPU, m) {
  m.impl("_max_pool2d_cpu", TORCH_BOX(&max_pool2d_cpu));
  m.impl("_max_pool2d_backward_cpu", TORCH_BOX(&max_pool2d_backward_cpu));
}

}  // namespace cnnkernels
