// Stand-alone check of the memory-bound kernels against plain CPU code, without torch. Small
// shapes, so that it also runs under compute-sanitizer (memcheck, racecheck) in seconds. Outputs
// start as a sentinel and lie between guard zones; every start offset from 0 to 3 elements, odd
// sizes, C not a multiple of the vector, ties, NaN, windows of only -inf.
//   nvcc -std=c++17 -O2 --expt-relaxed-constexpr -Icsrc -gencode arch=compute_90a,code=sm_90a \
//     tests/cuda/check_mem.cu csrc/{max_pool2d,lrn,lrn_pool,relu,global_avg_pool2d}/*.cu -o
//     check_mem
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "global_avg_pool2d/global_avg_pool2d.h"
#include "lrn/lrn.h"
#include "lrn_pool/lrn_pool.h"
#include "max_pool2d/max_pool2d.h"
#include "relu/relu.h"

namespace {

using namespace cnnkernels;

constexpr size_t kGuard = 64;  // bytes on each side of a buffer
constexpr uint8_t kSentinel = 0xA5;
int checks = 0, failures = 0;

void expect(bool ok, const char* what, int a = 0, int b = 0, int c = 0) {
  ++checks;
  if (ok) return;
  ++failures;
  if (failures < 40) std::printf("FAILED %s (%d, %d, %d)\n", what, a, b, c);
}

void cuda_ok(cudaError_t error, const char* what) {
  if (error == cudaSuccess) error = cudaDeviceSynchronize();
  if (error != cudaSuccess) {
    std::printf("%s: %s\n", what, cudaGetErrorString(error));
    std::exit(2);
  }
}

// Device memory of `count` elements that starts `offset` elements after a 16-byte boundary.
template <class T>
struct Buffer {
  size_t count, offset;
  uint8_t* base = nullptr;
  explicit Buffer(size_t count, size_t offset = 0) : count(count), offset(offset) {
    cuda_ok(cudaMalloc(&base, bytes()), "cudaMalloc");
    cuda_ok(cudaMemset(base, kSentinel, bytes()), "cudaMemset");
  }
  Buffer(const std::vector<T>& values, size_t offset = 0) : Buffer(values.size(), offset) {
    cuda_ok(cudaMemcpy(get(), values.data(), count * sizeof(T), cudaMemcpyHostToDevice), "copy");
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { cudaFree(base); }
  size_t bytes() const { return 2 * kGuard + (count + offset) * sizeof(T); }
  T* get() { return reinterpret_cast<T*>(base + kGuard) + offset; }
  // The values, after checking that nothing around them was touched.
  std::vector<T> read(const char* what) {
    std::vector<uint8_t> all(bytes());
    cuda_ok(cudaMemcpy(all.data(), base, all.size(), cudaMemcpyDeviceToHost), "copy back");
    const size_t first = kGuard + offset * sizeof(T), last = first + count * sizeof(T);
    bool clean = true;
    for (size_t i = 0; i < all.size(); ++i)
      if (i < first || i >= last) clean = clean && all[i] == kSentinel;
    expect(clean, what, -1);
    std::vector<T> values(count);
    std::memcpy(values.data(), all.data() + first, count * sizeof(T));
    return values;
  }
};

bool same(float a, float b) { return a == b || (a != a && b != b); }

bool close(float a, double b, double scale) {
  return std::fabs(a - b) <= 2e-6 * scale || same(a, b);
}

std::vector<float> random_values(size_t count, bool special, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> v(count);
  for (float& x : v) {
    x = normal(generator);
    if (!special) continue;
    x = std::round(2 * x);  // ties
    const unsigned r = generator() % 64;
    if (r == 0) x = NAN;
    if (r > 0 && r < 12) x = -INFINITY;
  }
  return v;
}

struct Index {  // element (n, c, h, w) in memory
  int64_t c, h, w;
  Layout layout;
  size_t operator()(int64_t n, int64_t k, int64_t y, int64_t x) const {
    return layout == Layout::nhwc ? ((n * h + y) * w + x) * c + k : ((n * c + k) * h + y) * w + x;
  }
};

void pool_reference(const PoolShape& s, Layout layout, bool relu, const std::vector<float>& x,
                    std::vector<float>& y, std::vector<int>& position) {
  const Index in{s.c, s.h, s.w, layout}, out{s.c, s.oh, s.ow, layout};
  for (int64_t n = 0; n < s.n; ++n)
    for (int64_t c = 0; c < s.c; ++c)
      for (int oh = 0; oh < s.oh; ++oh)
        for (int ow = 0; ow < s.ow; ++ow) {
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
          y[out(n, c, oh, ow)] = best;
          position[out(n, c, oh, ow)] = at < 0 ? kNoGradient : at;
        }
}

void check_pool(int kernel, int stride, int pad, int dilation, bool ceil_mode, int64_t c, int h,
                int w, Layout layout, size_t offset, bool relu) {
  PoolShape s;
  s.n = 2, s.c = c, s.h = h, s.w = w;
  s.kernel_h = s.kernel_w = kernel, s.stride_h = s.stride_w = stride;
  s.pad_h = s.pad_w = pad, s.dilation_h = s.dilation_w = dilation;
  s.oh = static_cast<int>(plan::pooled_size(h, kernel, stride, pad, dilation, ceil_mode));
  s.ow = static_cast<int>(plan::pooled_size(w, kernel, stride, pad, dilation, ceil_mode));
  if (s.oh < 1 || s.ow < 1) return;
  const size_t inputs = s.n * c * h * w, outputs = s.n * c * s.oh * s.ow;
  const auto x = random_values(inputs, true, kernel * 31 + h);
  std::vector<float> y(outputs);
  std::vector<int> position(outputs);
  pool_reference(s, layout, relu, x, y, position);

  Buffer<float> x_device(x, offset), y_device(outputs, offset), y2_device(outputs, offset);
  Buffer<uint8_t> offsets_device(outputs, offset);
  MaxPoolParams p{
      x_device.get(), y_device.get(), offsets_device.get(), s, Dtype::f32, layout, relu};
  cuda_ok(launch_max_pool2d(p, nullptr), "max_pool2d with offsets");
  p.y = y2_device.get(), p.offsets = nullptr;
  cuda_ok(launch_max_pool2d(p, nullptr), "max_pool2d");
  const auto got = y_device.read("pool guard"), got2 = y2_device.read("pool guard");
  const auto offsets = offsets_device.read("offset guard");
  bool values = true, positions = true;
  for (size_t i = 0; i < outputs; ++i) {
    values = values && same(got[i], y[i]) && same(got2[i], y[i]);
    positions = positions && offsets[i] == position[i];
  }
  expect(values, "pool values", kernel * 10 + stride, static_cast<int>(c), w);
  expect(positions, "pool offsets", kernel * 10 + stride, static_cast<int>(c), w);

  const auto dy = random_values(outputs, false, 7);
  std::vector<double> dx(inputs, 0.0);
  const Index in{c, h, w, layout}, out{c, s.oh, s.ow, layout};
  for (int64_t n = 0; n < s.n; ++n)
    for (int64_t k = 0; k < c; ++k)
      for (int oh = 0; oh < s.oh; ++oh)
        for (int ow = 0; ow < s.ow; ++ow) {
          const size_t i = out(n, k, oh, ow);
          if (position[i] == kNoGradient) continue;
          const int at_h = oh * stride - pad + position[i] / kernel * dilation;
          const int at_w = ow * stride - pad + position[i] % kernel * dilation;
          dx[in(n, k, at_h, at_w)] += dy[i];
        }
  Buffer<float> dy_device(dy, offset), dx_device(inputs, offset);
  MaxPoolBackwardParams b{dy_device.get(), offsets_device.get(), dx_device.get(), s, Dtype::f32,
                          layout};
  cuda_ok(launch_max_pool2d_backward(b, nullptr), "max_pool2d_backward");
  const auto got_dx = dx_device.read("pool dx guard");
  bool gradient = true;
  for (size_t i = 0; i < inputs; ++i) gradient = gradient && close(got_dx[i], dx[i], 4.0);
  expect(gradient, "pool gradient", kernel * 10 + stride, static_cast<int>(c), w);
}

void check_lrn(int size, float beta, int64_t c, int64_t pixels, Layout layout, size_t offset,
               bool relu, bool with_bias) {
  LrnShape s;
  s.n = 2, s.c = c, s.pixels = pixels, s.size = size;
  s.alpha = 0.3f, s.beta = beta, s.k = 1.5f, s.relu = relu;
  const size_t count = s.n * c * pixels;
  const auto x = random_values(count, false, 3), dy = random_values(count, false, 5);
  const auto bias = random_values(c, false, 9);
  std::vector<double> y(count), dx(count);
  for (int64_t n = 0; n < s.n; ++n)
    for (int64_t p = 0; p < pixels; ++p) {
      auto at = [&](int64_t k) {
        return layout == Layout::nhwc ? (n * pixels + p) * c + k : (n * c + k) * pixels + p;
      };
      std::vector<double> v(c), d(c);
      for (int64_t k = 0; k < c; ++k) {
        v[k] = x[at(k)] + (with_bias ? bias[k] : 0.f);
        if (relu) v[k] = std::fmax(v[k], 0.0);
      }
      for (int64_t k = 0; k < c; ++k) {
        double sum = 0;
        for (int64_t j = std::max<int64_t>(0, k - plan::lrn_front(size));
             j <= std::min<int64_t>(c - 1, k + plan::lrn_back(size)); ++j)
          sum += v[j] * v[j];
        d[k] = s.k + double(s.alpha) / size * sum;
        y[at(k)] = v[k] * std::pow(d[k], -double(beta));
      }
      for (int64_t k = 0; k < c; ++k) {
        double sum = 0;
        for (int64_t j = std::max<int64_t>(0, k - plan::lrn_back(size));
             j <= std::min<int64_t>(c - 1, k + plan::lrn_front(size)); ++j)
          sum += dy[at(j)] * v[j] * std::pow(d[j], -double(beta) - 1);
        dx[at(k)] =
            dy[at(k)] * std::pow(d[k], -double(beta)) - 2.0 * s.alpha * beta / size * v[k] * sum;
        if (relu && v[k] <= 0) dx[at(k)] = 0;
      }
    }
  Buffer<float> x_device(x, offset), dy_device(dy, offset), y_device(count, offset);
  Buffer<float> dx_device(count, offset), bias_device(bias, 0);
  LrnParams p{x_device.get(),
              with_bias ? bias_device.get() : nullptr,
              nullptr,
              y_device.get(),
              s,
              Dtype::f32,
              layout};
  cuda_ok(launch_lrn(p, nullptr), "lrn");
  p.dy = dy_device.get(), p.out = dx_device.get();
  cuda_ok(launch_lrn_backward(p, nullptr), "lrn_backward");
  const auto got_y = y_device.read("lrn guard"), got_dx = dx_device.read("lrn dx guard");
  bool forward = true, backward = true;
  for (size_t i = 0; i < count; ++i) {
    forward = forward && close(got_y[i], y[i], std::fabs(y[i]) + 1e-3);
    backward = backward && close(got_dx[i], dx[i], std::fabs(dx[i]) + 1.0);
  }
  expect(forward, "lrn", size, static_cast<int>(c), static_cast<int>(pixels));
  expect(backward, "lrn gradient", size, static_cast<int>(c), static_cast<int>(pixels));
}

// The fused chain must equal LRN, then pool, bit by bit; its backward the two backwards.
void check_lrn_pool(int64_t c, int h, int w, int pad, bool ceil_mode, bool with_bias) {
  LrnPoolParams p{};
  p.dtype = Dtype::f32;
  PoolShape& s = p.pool;
  s.n = 2, s.c = c, s.h = h, s.w = w;
  s.kernel_h = s.kernel_w = 3, s.stride_h = s.stride_w = 2, s.pad_h = s.pad_w = pad;
  s.oh = static_cast<int>(plan::pooled_size(h, 3, 2, pad, 1, ceil_mode));
  s.ow = static_cast<int>(plan::pooled_size(w, 3, 2, pad, 1, ceil_mode));
  p.lrn.n = 2, p.lrn.c = c, p.lrn.pixels = int64_t{h} * w, p.lrn.relu = true, p.lrn.alpha = 0.2f;
  const size_t inputs = s.n * c * h * w, outputs = s.n * c * s.oh * s.ow;
  const auto x = random_values(inputs, false, 21), dy = random_values(outputs, false, 22);
  Buffer<float> x_device(x), dy_device(dy), bias(random_values(c, false, 23)), middle(inputs);
  Buffer<float> y(outputs), y_plain(outputs), y_two(outputs), dx(inputs), dx_two(inputs);
  Buffer<uint8_t> offsets(outputs), offsets_two(outputs);
  p.x = x_device.get(), p.bias = with_bias ? bias.get() : nullptr;
  p.y = y.get(), p.offsets = offsets.get();
  cuda_ok(launch_lrn_pool(p, nullptr), "lrn_pool with offsets");
  p.y = y_plain.get(), p.offsets = nullptr;
  cuda_ok(launch_lrn_pool(p, nullptr), "lrn_pool");
  LrnParams l{p.x, p.bias, nullptr, middle.get(), p.lrn, Dtype::f32, Layout::nhwc};
  cuda_ok(launch_lrn(l, nullptr), "lrn");
  MaxPoolParams m{middle.get(), y_two.get(), offsets_two.get(), s, Dtype::f32, Layout::nhwc, false};
  cuda_ok(launch_max_pool2d(m, nullptr), "max_pool2d");
  const auto one = y.read("fused guard"), two = y_two.read("pool guard");
  const bool equal = one == two && y_plain.read("fused guard") == two;
  expect(equal, "fused values", static_cast<int>(c), h, w);
  expect(offsets.read("fused guard") == offsets_two.read("pool guard"), "fused offsets",
         static_cast<int>(c), h, w);

  LrnPoolBackwardParams b{p.x,   p.bias, dy_device.get(), offsets.get(), dx.get(),
                          p.lrn, s,      Dtype::f32};
  cuda_ok(launch_lrn_pool_backward(b, nullptr), "lrn_pool_backward");
  MaxPoolBackwardParams mb{dy_device.get(), offsets.get(), middle.get(), s,
                           Dtype::f32,      Layout::nhwc};
  cuda_ok(launch_max_pool2d_backward(mb, nullptr), "max_pool2d_backward");
  l.dy = middle.get(), l.out = dx_two.get();
  cuda_ok(launch_lrn_backward(l, nullptr), "lrn_backward");
  const auto g = dx.read("fused dx guard"), g_two = dx_two.read("lrn dx guard");
  bool close_enough = true;
  for (size_t i = 0; i < inputs; ++i) close_enough = close_enough && close(g[i], g_two[i], 2.0);
  expect(close_enough, "fused gradient", static_cast<int>(c), h, w);
}

void check_elementwise(size_t count, size_t offset) {
  auto x = random_values(count, true, 41);
  Buffer<float> x_device(x, offset), y(count, offset);
  Buffer<uint8_t> mask((count + 7) / 8);
  cuda_ok(
      launch_relu_mask(
          {x_device.get(), y.get(), mask.get(), static_cast<int64_t>(count), Dtype::f32}, nullptr),
      "relu_mask");
  const auto got = y.read("relu guard");
  const auto bits = mask.read("mask guard");
  bool ok = true;
  for (size_t i = 0; i < count; ++i) {
    const bool pass = !(x[i] <= 0);
    ok = ok && same(got[i], pass ? x[i] : 0.f) && (bits[i / 8] >> (i % 8) & 1) == pass;
  }
  expect(ok, "relu mask", static_cast<int>(count));
}

void check_mean(int64_t c, int64_t pixels, Layout layout, size_t offset) {
  const int64_t n = 3;
  const auto x = random_values(n * c * pixels, false, 51);
  Buffer<float> x_device(x, offset), y(n * c, offset), dx(n * c * pixels, offset);
  cuda_ok(launch_global_avg_pool2d({x_device.get(), y.get(), n, c, pixels, Dtype::f32, layout},
                                   nullptr),
          "global_avg_pool2d");
  cuda_ok(launch_global_avg_pool2d_backward({y.get(), dx.get(), n, c, pixels, Dtype::f32, layout},
                                            nullptr),
          "global_avg_pool2d_backward");
  const auto mean = y.read("mean guard"), spread = dx.read("spread guard");
  bool forward = true, backward = true;
  for (int64_t i = 0; i < n * c; ++i) {
    double sum = 0;
    for (int64_t p = 0; p < pixels; ++p) {
      const size_t at = layout == Layout::nhwc ? (i / c * pixels + p) * c + i % c : i * pixels + p;
      sum += x[at];
      backward = backward && spread[at] == mean[i] / static_cast<float>(pixels);
    }
    forward = forward && close(mean[i], sum / pixels, 1.0);
  }
  expect(forward, "mean", static_cast<int>(c), static_cast<int>(pixels));
  expect(backward, "spread", static_cast<int>(c), static_cast<int>(pixels));
}

}  // namespace

int main() {
  const int windows[][4] = {{3, 2, 0, 1}, {3, 2, 1, 1}, {2, 2, 0, 1}, {2, 2, 1, 1},
                            {3, 1, 1, 1}, {3, 1, 0, 1}, {5, 3, 2, 1}, {3, 2, 1, 2}};
  for (Layout layout : {Layout::nchw, Layout::nhwc})
    for (const auto& k : windows)
      for (size_t offset : {0, 1, 3}) {
        check_pool(k[0], k[1], k[2], k[3], false, 8, 13, 17, layout, offset, false);
        check_pool(k[0], k[1], k[2], k[3], true, 5, 12, 9, layout, offset, true);
        check_pool(k[0], k[1], k[2], k[3], true, 4, 120, 58, layout, offset, false);
      }
  for (Layout layout : {Layout::nchw, Layout::nhwc})
    for (size_t offset : {0, 1, 2})
      for (int size : {5, 1, 2, 4, 9}) {
        check_lrn(size, 0.75f, 24, 55, layout, offset, false, false);
        check_lrn(size, 0.75f, 7, 601, layout, offset, true, true);
        check_lrn(size, 0.6f, 12, 16, layout, offset, true, false);
      }
  for (bool with_bias : {false, true})
    for (int pad : {0, 1})
      for (bool ceil_mode : {false, true}) {
        check_lrn_pool(24, 13, 12, pad, ceil_mode, with_bias);
        check_lrn_pool(96, 9, 31, pad, ceil_mode, with_bias);
      }
  for (size_t offset : {0, 1})
    for (size_t count : {1, 8, 1003, 4096}) check_elementwise(count, offset);
  for (Layout layout : {Layout::nchw, Layout::nhwc})
    for (size_t offset : {0, 1}) {
      check_mean(8, 49, layout, offset);
      check_mean(37, 5, layout, offset);
      check_mean(1024, 7, layout, offset);
    }
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures ? 1 : 0;
}
