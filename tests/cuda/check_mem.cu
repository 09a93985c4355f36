// Stand-alone check of the memory-bound kernels against plain CPU code, without torch. Small
// shapes, so that it also runs under compute-sanitizer (memcheck, racecheck) in seconds, and on a
// CPU (tests/test_cuda_on_host.py). Every dtype, layout and start offset, odd sizes, C not a
// multiple of the vector, ties, NaN, windows of only -inf. "time": speeds, see mem_times.h.
//   nvcc -std=c++17 -O2 --expt-relaxed-constexpr -Icsrc -gencode arch=compute_90a,code=sm_90a \
//     tests/cuda/check_mem.cu \
//     csrc/{max_pool2d,lrn,lrn_pool,relu,relu_bias,add_relu,global_avg_pool2d}/*.cu -o check_mem
#include "add_relu/add_relu.h"
#include "check.h"
#include "global_avg_pool2d/global_avg_pool2d.h"
#include "lrn/lrn.h"
#include "lrn_pool/lrn_pool.h"
#include "max_pool2d/max_pool2d.h"
#include "relu/relu.h"
#include "relu_bias/relu_bias.h"
#ifdef __CUDACC__
#include "mem_times.h"
#endif

namespace {

using namespace cnnkernels;
using namespace check;

struct Index {  // element (n, c, h, w) in memory
  int64_t c, h, w;
  Layout layout;
  size_t operator()(int64_t n, int64_t k, int64_t y, int64_t x) const {
    return layout == Layout::nhwc ? ((n * h + y) * w + x) * c + k : ((n * c + k) * h + y) * w + x;
  }
};

PoolShape pool_shape(int kernel, int stride, int pad, int dilation, bool ceil_mode, int64_t c,
                     int h, int w) {
  PoolShape s;
  s.n = 2, s.c = c, s.h = h, s.w = w;
  s.kernel_h = s.kernel_w = kernel, s.stride_h = s.stride_w = stride;
  s.pad_h = s.pad_w = pad, s.dilation_h = s.dilation_w = dilation;
  s.oh = static_cast<int>(plan::pooled_size(h, kernel, stride, pad, dilation, ceil_mode));
  s.ow = static_cast<int>(plan::pooled_size(w, kernel, stride, pad, dilation, ceil_mode));
  return s;
}

// fn(output index, n, c, oh, ow) for every window.
template <class Fn>
void each_window(const PoolShape& s, Layout layout, Fn fn) {
  const Index out{s.c, s.oh, s.ow, layout};
  for (int64_t n = 0; n < s.n; ++n)
    for (int64_t c = 0; c < s.c; ++c)
      for (int oh = 0; oh < s.oh; ++oh)
        for (int ow = 0; ow < s.ow; ++ow) fn(out(n, c, oh, ow), n, c, oh, ow);
}

// Sums in fp32 in the order oh, ow, as every kernel does.
std::vector<float> pool_gradient(const PoolShape& s, Layout layout,
                                 const std::vector<float>& offsets, const std::vector<float>& dy) {
  std::vector<float> dx(s.n * s.c * s.h * s.w, 0.f);
  const Index in{s.c, s.h, s.w, layout};
  each_window(s, layout, [&](size_t i, int64_t n, int64_t c, int oh, int ow) {
    const int position = static_cast<int>(offsets[i]);
    if (position == kNoGradient) return;
    dx[in(n, c, oh * s.stride_h - s.pad_h + position / s.kernel_w * s.dilation_h,
          ow * s.stride_w - s.pad_w + position % s.kernel_w * s.dilation_w)] += dy[i];
  });
  return dx;
}

template <class T>
void check_pool(const PoolShape& s, Layout layout, size_t offset, bool relu) {
  if (s.oh < 1 || s.ow < 1) return;
  const size_t inputs = s.n * s.c * s.h * s.w, outputs = s.n * s.c * s.oh * s.ow;
  const auto x = random_values<T>(inputs, s.kernel_h * 31 + s.h, true);
  Buffer<T> x_device(x, offset), y(outputs, offset), y_alone(outputs, offset);
  Buffer<uint8_t> offsets(outputs, offset);
  MaxPoolParams p{x_device.get(), y.get(), offsets.get(), s, Element<T>::dtype, layout, relu};
  cuda_ok(launch_max_pool2d(p, nullptr), "max_pool2d with offsets");
  p.y = y_alone.get(), p.offsets = nullptr;
  cuda_ok(launch_max_pool2d(p, nullptr), "max_pool2d");

  const auto got = y.read("pool guard"), alone = y_alone.read("pool guard");
  const auto positions = offsets.read("offset guard");
  const Index in{s.c, s.h, s.w, layout};
  bool values_ok = true, positions_ok = true;
  each_window(s, layout, [&](size_t i, int64_t n, int64_t c, int oh, int ow) {
    float best = -INFINITY;
    int at = -1;
    for (int kh = 0; kh < s.kernel_h; ++kh)
      for (int kw = 0; kw < s.kernel_w; ++kw) {
        const int h = oh * s.stride_h - s.pad_h + kh * s.dilation_h;
        const int w = ow * s.stride_w - s.pad_w + kw * s.dilation_w;
        if (h < 0 || h >= s.h || w < 0 || w >= s.w) continue;
        const float v = x[in(n, c, h, w)];
        if (at < 0 || v > best || v != v) best = v, at = kh * s.kernel_w + kw;
      }
    if (relu && best <= 0) best = 0, at = -1;
    values_ok = values_ok && same(got[i], best) && same(alone[i], best);
    positions_ok = positions_ok && positions[i] == (at < 0 ? kNoGradient : at);
  });
  expect(values_ok, "pool values", s.kernel_h * 10 + s.stride_h, s.c, s.w);
  expect(positions_ok, "pool offsets", s.kernel_h * 10 + s.stride_h, s.c, s.w);

  const auto dy = random_values<T>(outputs, 7);
  const auto expected = pool_gradient(s, layout, positions, dy);
  Buffer<T> dy_device(dy, offset), dx(inputs, offset);
  cuda_ok(launch_max_pool2d_backward(
              {dy_device.get(), offsets.get(), dx.get(), s, Element<T>::dtype, layout}, nullptr),
          "max_pool2d_backward");
  const auto got_dx = dx.read("pool dx guard");
  bool gradient_ok = true;
  for (size_t i = 0; i < inputs; ++i)
    gradient_ok = gradient_ok && got_dx[i] == widen(Element<T>::from(expected[i]));
  expect(gradient_ok, "pool gradient", s.kernel_h * 10 + s.stride_h, s.c, s.w);
}

struct LrnOracle {
  std::vector<double> y, dx, room;  // room: sum of the magnitudes of dx's two terms

  template <class Grad>
  LrnOracle(const LrnShape& s, Layout layout, const std::vector<float>& x, const float* bias,
            const std::vector<Grad>& dy)
      : y(x.size()), dx(x.size()), room(x.size()) {
    const int64_t front = plan::lrn_front(s.size), back = plan::lrn_back(s.size);
    for (int64_t column = 0; column < s.n * s.pixels; ++column) {
      const int64_t n = column / s.pixels, pixel = column % s.pixels;
      auto at = [&](int64_t k) {
        return layout == Layout::nhwc ? column * s.c + k : (n * s.c + k) * s.pixels + pixel;
      };
      std::vector<double> v(s.c), d(s.c);
      for (int64_t k = 0; k < s.c; ++k) {
        v[k] = bias ? x[at(k)] + bias[k] : x[at(k)];
        if (s.relu) v[k] = std::fmax(v[k], 0.0);
      }
      for (int64_t k = 0; k < s.c; ++k) {
        double sum = 0;
        for (int64_t j = std::max<int64_t>(0, k - front); j <= std::min(s.c - 1, k + back); ++j)
          sum += v[j] * v[j];
        d[k] = s.k + s.alpha / s.size * sum;
        y[at(k)] = v[k] * std::pow(d[k], -s.beta);
      }
      for (int64_t k = 0; k < s.c; ++k) {
        double sum = 0, magnitudes = 0;
        for (int64_t j = std::max<int64_t>(0, k - back); j <= std::min(s.c - 1, k + front); ++j) {
          const double t = dy[at(j)] * v[j] * std::pow(d[j], -s.beta - 1);
          sum += t, magnitudes += std::fabs(t);
        }
        const double direct = dy[at(k)] * std::pow(d[k], -s.beta);
        const double factor = 2.0 * s.alpha * s.beta / s.size * v[k];
        dx[at(k)] = s.relu && v[k] <= 0 ? 0 : direct - factor * sum;
        room[at(k)] = std::fabs(direct) + std::fabs(factor) * magnitudes;
      }
    }
  }
};

// scale: of the input; the larger, the more the sum of squares counts in d.
template <class T>
void check_lrn(int size, double beta, float scale, int64_t c, int64_t pixels, Layout layout,
               size_t offset, bool relu, bool with_bias, int64_t n = 2) {
  LrnShape s;
  s.n = n, s.c = c, s.pixels = pixels, s.size = size;
  s.alpha = 0.3, s.beta = beta, s.k = 1.1, s.relu = relu;
  const size_t count = s.n * c * pixels;
  const auto x = random_values<T>(count, 3, false, scale), dy = random_values<T>(count, 5);
  const auto bias = random_values<T>(c, 9);
  const LrnOracle oracle(s, layout, x, with_bias ? bias.data() : nullptr, dy);
  Buffer<T> x_device(x, offset), dy_device(dy, offset), y(count, offset), dx(count, offset);
  Buffer<T> bias_device(bias);
  LrnParams p{x_device.get(),
              with_bias ? bias_device.get() : nullptr,
              nullptr,
              y.get(),
              s,
              Element<T>::dtype,
              layout};
  cuda_ok(launch_lrn(p, nullptr), "lrn");
  p.dy = dy_device.get(), p.out = dx.get();
  cuda_ok(launch_lrn_backward(p, nullptr), "lrn_backward");
  const auto got = y.read("lrn guard"), got_dx = dx.read("lrn dx guard");
  double forward = 0, backward = 0;
  for (size_t i = 0; i < count; ++i) {
    forward = std::fmax(forward, std::fabs(got[i] - oracle.y[i]) / ulp<T>(oracle.y[i]));
    const double unit = ulp<T>(oracle.dx[i]) + 0x1p-23 * oracle.room[i];
    backward = std::fmax(backward, std::fabs(got_dx[i] - oracle.dx[i]) / unit);
  }
  expect(forward <= 2.0, "lrn, hundredths of an ulp", int64_t(forward * 100), size, c);
  expect(backward <= 2.0, "lrn gradient", int64_t(backward * 100), size, c);
}

// The fused chain must equal LRN, then pool, bit by bit; its gradient follows the definition.
template <class T>
void check_lrn_pool(int64_t c, int h, int w, int pad, bool ceil_mode, bool with_bias,
                    Layout layout = Layout::nhwc) {
  const PoolShape s = pool_shape(3, 2, pad, 1, ceil_mode, c, h, w);
  constexpr Dtype dtype = Element<T>::dtype;
  const bool special = layout == Layout::nchw;  // there the gradient is not fused
  LrnShape lrn;
  lrn.n = 2, lrn.c = c, lrn.pixels = int64_t{h} * w, lrn.relu = true, lrn.alpha = 0.2;
  const size_t inputs = s.n * c * h * w, outputs = s.n * c * s.oh * s.ow;
  const auto x = random_values<T>(inputs, 21, special), dy = random_values<T>(outputs, 22);
  const auto bias = random_values<T>(c, 23);
  Buffer<T> x_device(x), dy_device(dy), bias_device(bias), middle(inputs), dx(inputs);
  Buffer<T> y(outputs), y_alone(outputs), y_two(outputs);
  Buffer<uint8_t> offsets(outputs), offsets_two(outputs);
  const void* b = with_bias ? bias_device.get() : nullptr;
  LrnPoolParams p{x_device.get(), b, y.get(), offsets.get(), lrn, s, dtype, layout};
  cuda_ok(launch_lrn_pool(p, nullptr), "lrn_pool with offsets");
  p.y = y_alone.get(), p.offsets = nullptr;
  cuda_ok(launch_lrn_pool(p, nullptr), "lrn_pool");
  cuda_ok(launch_lrn({x_device.get(), b, nullptr, middle.get(), lrn, dtype, layout}, nullptr),
          "lrn");
  cuda_ok(launch_max_pool2d({middle.get(), y_two.get(), offsets_two.get(), s, dtype, layout, false},
                            nullptr),
          "max_pool2d");
  const auto two = y_two.read("pool guard"), positions = offsets.read("fused guard");
  const auto one = y.read("fused guard"), alone = y_alone.read("fused guard");
  bool values_ok = true;
  for (size_t i = 0; i < outputs; ++i)
    values_ok = values_ok && same(one[i], two[i]) && same(alone[i], two[i]);
  expect(values_ok, "fused values", c, h, w);
  expect(positions == offsets_two.read("fused guard"), "fused offsets", c, h, w);
  if (layout == Layout::nchw) return;

  cuda_ok(
      launch_lrn_pool_backward(
          {x_device.get(), b, dy_device.get(), offsets.get(), dx.get(), lrn, s, dtype}, nullptr),
      "lrn_pool_backward");
  const LrnOracle oracle(lrn, layout, x, with_bias ? bias.data() : nullptr,
                         pool_gradient(s, layout, positions, dy));
  const auto got = dx.read("fused dx guard");
  bool close = true;
  for (size_t i = 0; i < inputs; ++i)
    close = close && std::fabs(got[i] - oracle.dx[i]) <=
                         2 * (ulp<T>(oracle.dx[i]) + 0x1p-23 * oracle.room[i]);
  expect(close, "fused gradient", c, h, w);
}

template <class T>
void check_elementwise(size_t count, size_t offset) {
  const auto x = random_values<T>(count, 41, true), z = random_values<T>(count, 42);
  const int64_t numel = static_cast<int64_t>(count);
  constexpr Dtype dtype = Element<T>::dtype;
  Buffer<T> x_device(x, offset), z_device(z, offset), y(count, offset), sum(count, offset);
  Buffer<T> dx(count, offset);
  Buffer<uint8_t> mask((count + 7) / 8), sum_mask((count + 7) / 8);
  cuda_ok(launch_relu_mask({x_device.get(), y.get(), mask.get(), numel, dtype}, nullptr), "relu");
  cuda_ok(launch_add_relu({x_device.get(), z_device.get(), sum.get(), sum_mask.get(), numel, dtype},
                          nullptr),
          "add_relu");
  cuda_ok(launch_relu_backward_mask({z_device.get(), mask.get(), dx.get(), numel, dtype}, nullptr),
          "relu_backward_mask");
  const auto got = y.read("relu guard"), got_sum = sum.read("sum guard");
  const auto got_dx = dx.read("relu dx guard"), bits = mask.read("mask guard");
  const auto sum_bits = sum_mask.read("sum mask guard");
  bool ok = true;
  for (size_t i = 0; i < count; ++i) {
    const float added = widen(Element<T>::from(x[i] + z[i]));
    const bool pass = !(x[i] <= 0), sum_pass = !(added <= 0);
    ok = ok && same(got[i], pass ? x[i] : 0.f) && same(got_sum[i], sum_pass ? added : 0.f) &&
         same(got_dx[i], pass ? z[i] : 0.f) && (int(bits[i / 8]) >> (i % 8) & 1) == pass &&
         (int(sum_bits[i / 8]) >> (i % 8) & 1) == sum_pass;
  }
  expect(ok, "relu, add + relu", numel, offset);
}

// slices = 0: as many as the binding takes.
template <class T>
void check_relu_bias(int64_t n, int64_t c, int64_t pixels, Layout layout, size_t offset,
                     int64_t slices) {
  const int64_t count = n * c * pixels;
  if (slices == 0) slices = relu_bias_slices(n, c, pixels, layout);
  const auto grad = random_values<T>(count, 61), y = random_values<T>(count, 62, true);
  Buffer<T> grad_device(grad, offset), y_device(y, offset), dx(count, offset), dbias(c, offset);
  Buffer<float> partial(slices * c);
  cuda_ok(
      launch_relu_bias_backward({grad_device.get(), y_device.get(), dx.get(), dbias.get(),
                                 partial.get(), n, c, pixels, slices, Element<T>::dtype, layout},
                                nullptr),
      "relu_bias_backward");
  const auto got = dx.read("relu_bias guard"), sums = dbias.read("dbias guard");
  partial.read("partial guard");
  std::vector<double> wanted(c), size(c);
  bool masked = true, summed = true;
  for (int64_t i = 0; i < count; ++i) {
    const float v = y[i] <= 0 ? 0.f : grad[i];
    const int64_t channel = layout == Layout::nhwc ? i % c : i / pixels % c;
    masked = masked && same(got[i], v);
    wanted[channel] += v;
    size[channel] += std::fabs(v);
  }
  for (int64_t k = 0; k < c; ++k)
    summed = summed && std::fabs(sums[k] - wanted[k]) <= 0.51 * ulp<T>(wanted[k]) + 1e-6 * size[k];
  expect(masked, "relu_bias mask", c, pixels, slices);
  expect(summed, "relu_bias sum", c, pixels, slices);
}

template <class T>
void check_mean(int64_t n, int64_t c, int64_t pixels, Layout layout, size_t offset) {
  const auto x = random_values<T>(n * c * pixels, 51);
  Buffer<T> x_device(x, offset), y(n * c, offset), dx(n * c * pixels, offset);
  constexpr Dtype dtype = Element<T>::dtype;
  cuda_ok(launch_global_avg_pool2d({x_device.get(), y.get(), n, c, pixels, dtype, layout}, nullptr),
          "global_avg_pool2d");
  cuda_ok(
      launch_global_avg_pool2d_backward({y.get(), dx.get(), n, c, pixels, dtype, layout}, nullptr),
      "global_avg_pool2d_backward");
  const auto mean = y.read("mean guard"), spread = dx.read("spread guard");
  bool forward = true, backward = true;
  for (int64_t i = 0; i < n * c; ++i) {
    double sum = 0;
    for (int64_t p = 0; p < pixels; ++p) {
      const size_t at = layout == Layout::nhwc ? (i / c * pixels + p) * c + i % c : i * pixels + p;
      sum += x[at];
      backward =
          backward && spread[at] == widen(Element<T>::from(mean[i] / static_cast<float>(pixels)));
    }
    forward = forward && std::fabs(mean[i] - sum / pixels) <= ulp<T>(sum / pixels) + 1e-6;
  }
  expect(forward, "mean", c, pixels, n);
  expect(backward, "spread", c, pixels, n);
}

template <class T>
void check_all(std::initializer_list<size_t> offsets) {
  const int windows[][4] = {{3, 2, 0, 1}, {3, 2, 1, 1}, {2, 2, 0, 1}, {2, 2, 1, 1},
                            {3, 1, 1, 1}, {3, 1, 0, 1}, {5, 3, 2, 1}, {3, 2, 1, 2}};
  for (Layout layout : {Layout::nchw, Layout::nhwc})
    for (size_t offset : offsets) {
      for (const auto& k : windows) {
        auto shape = [&](bool ceil_mode, int64_t c, int h, int w) {
          return pool_shape(k[0], k[1], k[2], k[3], ceil_mode, c, h, w);
        };
        check_pool<T>(shape(false, 8, 13, 17), layout, offset, false);
        check_pool<T>(shape(true, 5, 12, 9), layout, offset, true);
        check_pool<T>(shape(true, 8, 6, 8), layout, offset, true);
        check_pool<T>(shape(true, 3, 1, 1), layout, offset, false);
        check_pool<T>(shape(false, 3, 5, 1), layout, offset, true);
        check_pool<T>(shape(true, 150, 2, 3), layout, offset, false);
        if (offset < 2) check_pool<T>(shape(true, 1, 250, 58), layout, offset, false);
        if (offset == 0) check_pool<T>(shape(true, 1, 7, 1024), layout, offset, false);
      }
      for (int size : {5, 1, 2, 4, 11}) {
        check_lrn<T>(size, 0.75, 0.2f, 24, 55, layout, offset, false, false);
        check_lrn<T>(size, 0.75, 3.f, 16, 41, layout, offset, false, false);
        check_lrn<T>(size, 0.6, 30.f, 8, 16, layout, offset, true, false);
      }
      check_lrn<T>(5, 0.75, 1.f, 7, 601, layout, offset, true, true);
      check_lrn<T>(5, 0.75, 30.f, 48, 16, layout, offset, true, true);
      // So many images that channels are hardly split: more stages than slots for them.
      if (offset == 1 && layout == Layout::nchw)
        check_lrn<T>(5, 0.75, 1.f, 70, 3, layout, offset, false, true, 264);
      for (int64_t slices : {0, 7}) {
        check_relu_bias<T>(3, 16, 64, layout, offset, slices);
        check_relu_bias<T>(3, 5, 13, layout, offset, slices);
      }
      check_relu_bias<T>(3, 8, 2400, layout, offset, 3);
      if (layout == Layout::nhwc) check_relu_bias<T>(2, 1032, 3, layout, offset, 2);
      check_mean<T>(3, 8, 49, layout, offset);
      check_mean<T>(3, 37, 5, layout, offset);
      check_mean<T>(2, 1024, 7, layout, offset);
      check_mean<T>(1, 96, 401, layout, offset);
    }
  for (bool with_bias : {false, true})
    for (int pad : {0, 1})
      for (bool ceil_mode : {false, true}) {
        check_lrn_pool<T>(24, 13, 12, pad, ceil_mode, with_bias);
        check_lrn_pool<T>(96, 9, 31, pad, ceil_mode, with_bias);
        check_lrn_pool<T>(9, 13, 12, pad, ceil_mode, with_bias, Layout::nchw);
        check_lrn_pool<T>(18, 41, 55, pad, ceil_mode, with_bias, Layout::nchw);
        check_lrn_pool<T>(3, 14, 100, pad, ceil_mode, with_bias, Layout::nchw);
      }
  for (size_t offset : offsets)
    for (size_t count : {1, 8, 1003, 4096}) check_elementwise<T>(count, offset);
}

}  // namespace

int main(int argc, char** argv) {
#ifdef __CUDACC__
  if (argc > 1 && std::string(argv[1]) == "time") return check::time_all(), 0;
#endif
  check_all<float>({0, 1, 3});
  check_all<__nv_bfloat16>({0, 1});
  check_all<__half>({0});
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures ? 1 : 0;
}
