// As much of CUDA as the memory-bound kernels use, on one CPU core: a fiber per thread, blocks one
// after the other. A thread runs until a barrier or a shuffle; CUDA_HOST_REVERSED=1 resumes the
// threads in descending order, so a missing barrier shows as a difference between the two. Device
// memory is host memory: guard zones and AddressSanitizer see what kernels read and write.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __shared__ static

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// --- runtime -------------------------------------------------------------------------------------

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
using cudaStream_t = void*;

inline const char* cudaGetErrorString(cudaError_t e) { return e ? "invalid value" : "no error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
template <class T>
cudaError_t cudaMalloc(T** p, size_t bytes) {
  *p = static_cast<T*>(std::aligned_alloc(256, (bytes + 255) / 256 * 256));
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* p) { return std::free(p), cudaSuccess; }
inline cudaError_t cudaMemset(void* p, int value, size_t bytes) {
  return std::memset(p, value, bytes), cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int bytes) {
  return bytes <= 227 * 1024 ? cudaSuccess : cudaErrorInvalidValue;
}

// --- threads -------------------------------------------------------------------------------------

struct Dim {
  unsigned x = 0;
};
inline Dim threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_host {

struct Copy {
  void* to;
  const void* from;
};
struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done = true;
  unsigned shuffles = 0;
  std::vector<std::vector<Copy>> copies{1};  // asynchronous copies: one list per group
};
constexpr size_t kStack = 64 * 1024, kShared = 228 * 1024;
inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline std::function<void()> body;
inline Fiber* current = nullptr;
alignas(128) inline char shared_memory[kShared];
inline uint32_t exchange[2][1024];

inline void pause() {
  Fiber* self = current;
  swapcontext(&self->context, &scheduler);
}
inline void run_forever() {
  for (;;) {
    body();
    current->done = true;
    pause();
  }
}
inline void run_block(unsigned threads, size_t shared) {
  static const bool reversed = std::getenv("CUDA_HOST_REVERSED") != nullptr;
  std::memset(shared_memory, 0xff, shared);  // NaN
  if (fibers.size() < threads) {
    fibers = std::vector<Fiber>(std::max<size_t>(threads, 512));
    for (Fiber& f : fibers) {
      f.stack.reset(new char[kStack]);
      getcontext(&f.context);
      f.context.uc_stack.ss_sp = f.stack.get(), f.context.uc_stack.ss_size = kStack;
      f.context.uc_link = nullptr;
      makecontext(&f.context, run_forever, 0);
    }
  }
  for (unsigned i = 0; i < threads; ++i) {
    fibers[i].done = false, fibers[i].shuffles = 0;
    fibers[i].copies.assign(1, {});
  }
  for (unsigned left = threads; left > 0;)
    for (unsigned i = 0; i < threads; ++i) {
      const unsigned t = reversed ? threads - 1 - i : i;
      if (fibers[t].done) continue;
      current = &fibers[t], threadIdx.x = t;
      swapcontext(&scheduler, &current->context);
      left -= current->done;
    }
}
template <class... Parameters>
auto launch(void (*kernel)(Parameters...), unsigned grid, unsigned threads, size_t shared,
            cudaStream_t) {
  return [=](Parameters... arguments) {
    if (threads > 1024 || shared > 227 * 1024) std::abort();
    gridDim.x = grid, blockDim.x = threads;
    body = [&] { kernel(arguments...); };
    std::memset(shared_memory, 0xff, kShared);
    for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x) run_block(threads, shared);
    for (size_t i = shared; i < kShared; ++i)  // written beyond what the launch asked for
      if (shared_memory[i] != static_cast<char>(0xff)) std::abort();
  };
}
inline void* shared() { return shared_memory; }

}  // namespace cuda_host

inline void __syncthreads() { cuda_host::pause(); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  static_assert(sizeof(T) == 4);
  const unsigned t = threadIdx.x, side = cuda_host::current->shuffles++ & 1;
  std::memcpy(&cuda_host::exchange[side][t], &value, 4);
  cuda_host::pause();
  std::memcpy(&value, &cuda_host::exchange[side][t ^ mask], 4);
  return value;
}

// --- arithmetic ----------------------------------------------------------------------------------

template <class A, class B>
std::common_type_t<A, B> min(A a, B b) {
  using C = std::common_type_t<A, B>;
  return std::min<C>(a, b);
}
template <class A, class B>
std::common_type_t<A, B> max(A a, B b) {
  using C = std::common_type_t<A, B>;
  return std::max<C>(a, b);
}
template <class To, class From>
To bits_to(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To r;
  std::memcpy(&r, &v, sizeof r);
  return r;
}
inline float __uint_as_float(uint32_t v) { return bits_to<float>(v); }
inline uint32_t __float_as_uint(float v) { return bits_to<uint32_t>(v); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t r = 0;
  for (int i = 0; i < 4; ++i)
    r |= static_cast<uint32_t>(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return r;
}

struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};
struct alignas(4) __half2 {
  __half x, y;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
inline float __bfloat162float(__nv_bfloat16 v) { return __uint_as_float(uint32_t{v.bits} << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float v) {
  const uint32_t w = __float_as_uint(v);
  if (v != v) return {0x7fff};
  return {static_cast<uint16_t>((w + 0x7fff + (w >> 16 & 1)) >> 16)};
}
inline float __half2float(__half v) {
  const int exponent = v.bits >> 10 & 31, fraction = v.bits & 1023;
  const float sign = v.bits >> 15 ? -1.f : 1.f;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * std::ldexp(static_cast<float>(exponent ? 1024 + fraction : fraction),
                           std::max(exponent, 1) - 25);
}
inline __half __float2half_rn(float v) {
  const uint16_t sign = __float_as_uint(v) >> 16 & 0x8000;
  if (v != v) return {0x7fff};
  const float magnitude = std::fabs(v);
  if (magnitude == 0.f) return {sign};
  if (magnitude >= 65520.f) return {static_cast<uint16_t>(sign | 0x7c00)};
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  const int unit =
      std::max(exponent - 11, -24);  // exponent of the spacing; nearbyint: ties to even
  const int steps = static_cast<int>(std::nearbyint(std::ldexp(magnitude, -unit)));
  // steps carry into the exponent's bits where rounding reaches the next power of two.
  const int encoded = unit == -24 ? steps : ((unit + 24) << 10) + steps;
  return {static_cast<uint16_t>(sign | encoded)};
}
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline float to_single(__half v) { return __half2float(v); }
inline float to_single(__nv_bfloat16 v) { return __bfloat162float(v); }

template <class Pair>
uint32_t __hgt2_mask(Pair a, Pair b) {
  return (to_single(a.x) > to_single(b.x) ? 0xffffu : 0u) |
         (to_single(a.y) > to_single(b.y) ? 0xffff0000u : 0u);
}
template <class Pair>
uint32_t __heq2_mask(Pair a, Pair b) {
  return (to_single(a.x) == to_single(b.x) ? 0xffffu : 0u) |
         (to_single(a.y) == to_single(b.y) ? 0xffff0000u : 0u);
}
inline __half2 __hadd2_rn(__half2 a, __half2 b) {
  return {__float2half_rn(to_single(a.x) + to_single(b.x)),
          __float2half_rn(to_single(a.y) + to_single(b.y))};
}
inline __nv_bfloat162 __hadd2_rn(__nv_bfloat162 a, __nv_bfloat162 b) {
  return {__float2bfloat16_rn(to_single(a.x) + to_single(b.x)),
          __float2bfloat16_rn(to_single(a.y) + to_single(b.y))};
}
