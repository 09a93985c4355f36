// What csrc/common/ptx.cuh's instructions do, in C++. The special functions are off by their worst
// relative error, 2^-22; CUDA_HOST_REVERSED turns its direction, too.
#pragma once

#include "execution.h"

namespace cnnkernels {

inline float approximate(double exact) {
  static const double error = std::getenv("CUDA_HOST_REVERSED") ? -0x1p-22 : 0x1p-22;
  return static_cast<float>(exact * (1 + error));
}
inline float approx_rsqrt(float x) { return approximate(1 / std::sqrt(static_cast<double>(x))); }
inline float approx_sqrt(float x) { return approximate(std::sqrt(static_cast<double>(x))); }
inline float approx_log2(float x) { return approximate(std::log2(static_cast<double>(x))); }
inline float approx_exp2(float x) { return approximate(std::exp2(static_cast<double>(x))); }

inline float max_nan(float a, float b) { return a != a || b != b ? NAN : a > b ? a : b; }
inline uint32_t pack_bf16x2(float low, float high) {
  return __float2bfloat16_rn(low).bits | uint32_t{__float2bfloat16_rn(high).bits} << 16;
}
inline uint32_t pack_f16x2(float low, float high) {
  return __float2half_rn(low).bits | uint32_t{__float2half_rn(high).bits} << 16;
}
template <class T>
uint32_t max_nan_half(uint32_t a, uint32_t b, int shift) {
  const uint16_t x = a >> shift, y = b >> shift;
  const float fx = to_single(T{x}), fy = to_single(T{y});
  const uint16_t r = fx != fx || fy != fy ? 0x7fff : fx > fy ? x : y;
  return uint32_t{r} << shift;
}
inline uint32_t max_nan_bf16x2(uint32_t a, uint32_t b) {
  return max_nan_half<__nv_bfloat16>(a, b, 0) | max_nan_half<__nv_bfloat16>(a, b, 16);
}
inline uint32_t max_nan_f16x2(uint32_t a, uint32_t b) {
  return max_nan_half<__half>(a, b, 0) | max_nan_half<__half>(a, b, 16);
}

inline void add_where_byte(float& sum, float g, uint32_t bytes, int e, uint32_t value) {
  if ((bytes >> 8 * e & 0xff) == value) sum += g;
}
inline uint32_t tap_bits(int position) { return 2u << (position & 31); }
inline bool has_tap(uint32_t bits, int tap) { return bits & (2u << tap); }
inline void keep(int&) {}

// A copy happens when its group is waited for, as late as it may.
inline void copy_async_16(void* shared, const void* global) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16)
    std::abort();
  cuda_host::current->copies.back().push_back({shared, global});
}
inline void copy_async_commit() { cuda_host::current->copies.emplace_back(); }
template <int kPending>
void copy_async_wait() {
  auto& groups = cuda_host::current->copies;
  while (groups.size() > kPending + 1) {
    for (const auto& copy : groups.front()) std::memcpy(copy.to, copy.from, 16);
    groups.erase(groups.begin());
  }
}

}  // namespace cnnkernels
