// What the stand-alone check programs share: counted checks, device buffers between guard zones,
// element types on the host, random values, errors in units of the last place.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "common/types.h"

namespace check {

inline int checks = 0, failures = 0;

inline void expect(bool ok, const char* what, int64_t a = 0, int64_t b = 0, int64_t c = 0) {
  ++checks;
  if (ok) return;
  if (++failures < 40) std::printf("FAILED %s (%ld, %ld, %ld)\n", what, long(a), long(b), long(c));
}

inline void cuda_ok(cudaError_t error, const char* what) {
  if (error == cudaSuccess) error = cudaDeviceSynchronize();
  if (error == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(error));
  std::exit(2);
}

// --- element types -------------------------------------------------------------------------------

inline float widen(float v) { return v; }
inline float widen(__half v) { return __half2float(v); }
inline float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
inline float widen(uint8_t v) { return v; }

template <class T>
struct Element;
template <>
struct Element<float> {
  static constexpr auto dtype = cnnkernels::Dtype::f32;
  static constexpr int bits = 24, least = -126;  // of the significand; exponent of the least normal
  static float from(float v) { return v; }
};
template <>
struct Element<__half> {
  static constexpr auto dtype = cnnkernels::Dtype::f16;
  static constexpr int bits = 11, least = -14;
  static __half from(float v) { return __float2half_rn(v); }
};
template <>
struct Element<__nv_bfloat16> {
  static constexpr auto dtype = cnnkernels::Dtype::bf16;
  static constexpr int bits = 8, least = -126;
  static __nv_bfloat16 from(float v) { return __float2bfloat16_rn(v); }
};

// Spacing of T's numbers at v.
template <class T>
double ulp(double v) {
  int exponent = Element<T>::least + 1;
  if (v != 0) std::frexp(v, &exponent);
  return std::ldexp(1.0, std::max(exponent - 1, Element<T>::least) - Element<T>::bits + 1);
}

inline bool same(float a, float b) { return a == b || (a != a && b != b); }

// --- values and buffers --------------------------------------------------------------------------

// Values that T holds. special: few distinct ones (ties), NaN, many -inf.
template <class T>
std::vector<float> random_values(size_t count, unsigned seed, bool special = false,
                                 float scale = 1.f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.f, scale);
  std::vector<float> v(count);
  for (float& x : v) {
    x = widen(Element<T>::from(normal(generator)));
    if (!special) continue;
    x = std::round(2 * x);
    const unsigned r = generator() % 64;
    if (r == 0) x = NAN;
    if (r > 0 && r < 12) x = -INFINITY;
  }
  return v;
}

// Device memory of `count` elements that starts `offset` elements after a 16-byte boundary, filled
// with a sentinel, between guard zones of it.
template <class T>
struct Buffer {
  static constexpr size_t kGuard = 64;
  static constexpr uint8_t kSentinel = 0xA5;
  size_t count, offset;
  uint8_t* base = nullptr;

  explicit Buffer(size_t count, size_t offset = 0) : count(count), offset(offset) {
    cuda_ok(cudaMalloc(&base, bytes()), "cudaMalloc");
    cuda_ok(cudaMemset(base, kSentinel, bytes()), "cudaMemset");
  }
  explicit Buffer(const std::vector<float>& values, size_t offset = 0)
      : Buffer(values.size(), offset) {
    std::vector<T> typed;
    for (float v : values) typed.push_back(Element<T>::from(v));
    cuda_ok(cudaMemcpy(get(), typed.data(), count * sizeof(T), cudaMemcpyHostToDevice), "copy");
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { cudaFree(base); }
  size_t bytes() const { return 2 * kGuard + (count + offset) * sizeof(T); }
  T* get() { return reinterpret_cast<T*>(base + kGuard) + offset; }

  // The values, after checking that nothing around them was touched.
  std::vector<float> read(const char* what) {
    std::vector<uint8_t> all(bytes());
    cuda_ok(cudaMemcpy(all.data(), base, all.size(), cudaMemcpyDeviceToHost), "copy back");
    const size_t first = kGuard + offset * sizeof(T), last = first + count * sizeof(T);
    bool clean = true;
    for (size_t i = 0; i < all.size(); ++i)
      if (i < first || i >= last) clean = clean && all[i] == kSentinel;
    expect(clean, what, -1);
    std::vector<T> typed(count);
    std::memcpy(static_cast<void*>(typed.data()), all.data() + first, count * sizeof(T));
    std::vector<float> values;
    for (T v : typed) values.push_back(widen(v));
    return values;
  }
};

}  // namespace check
