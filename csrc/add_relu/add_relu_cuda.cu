// out = relu(input + residual) and its backward, over flat memory (any dense layout).
// Thread = 8 consecutive elements: one 16-byte access per operand (two for fp32), so the mask byte
// of those 8 elements is the thread's own and needs no ballot. Grid covers ceil(numel / 8) threads.
// No shared memory; the kernel runs at copy bandwidth, and fancier schemes measured no faster.
// Tails and views whose start is not 16-byte aligned take the scalar path of the same thread.
#include "add_relu/add_relu.h"
#include "common/eight.cuh"

namespace cnnkernels {
namespace {

constexpr int kThreads = 256;

template <class T, bool kMask>
__global__ void __launch_bounds__(kThreads)
    add_relu_kernel(const T* __restrict__ input, const T* __restrict__ residual,
                    T* __restrict__ out, uint8_t* __restrict__ mask, int64_t numel, bool aligned) {
  const int64_t chunk = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t first = chunk * kEight;
  if (first >= numel) return;
  const int count = static_cast<int>(min(int64_t{kEight}, numel - first));

  float a[kEight], b[kEight];
  load8(input + first, aligned, count, a);
  load8(residual + first, aligned, count, b);
  unsigned bits = 0;
#pragma unroll
  for (int e = 0; e < kEight; ++e) {
    // Round the sum to T first, as torch's add does, so that the result is bit-equal to add then
    // relu.
    const float sum = to_float(from_float<T>(a[e] + b[e]));
    const bool pass = !(sum <= 0.f);  // true for NaN: torch's relu keeps it and its gradient passes
    a[e] = pass ? sum : 0.f;
    bits |= unsigned{pass} << e;
  }
  store8(out + first, aligned, count, a);
  if (kMask) mask[chunk] = static_cast<uint8_t>(bits & ((1u << count) - 1));
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    relu_backward_mask_kernel(const T* __restrict__ grad, const uint8_t* __restrict__ mask,
                              T* __restrict__ grad_input, int64_t numel, bool aligned) {
  const int64_t chunk = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t first = chunk * kEight;
  if (first >= numel) return;
  const int count = static_cast<int>(min(int64_t{kEight}, numel - first));

  float g[kEight];
  load8(grad + first, aligned, count, g);
  const unsigned bits = mask[chunk];
#pragma unroll
  for (int e = 0; e < kEight; ++e) g[e] = (bits >> e & 1) ? g[e] : 0.f;
  store8(grad_input + first, aligned, count, g);
}

bool all_aligned(const void* a, const void* b, const void* c = nullptr) {
  return ((reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b) |
           reinterpret_cast<uintptr_t>(c)) &
          15) == 0;
}

unsigned grid_for(int64_t numel) {
  constexpr int64_t per_block = int64_t{kThreads} * kEight;
  return static_cast<unsigned>((numel + per_block - 1) / per_block);
}

template <class T>
cudaError_t launch_forward(const AddReluParams& p, cudaStream_t stream) {
  auto* kernel = p.mask ? add_relu_kernel<T, true> : add_relu_kernel<T, false>;
  kernel<<<grid_for(p.numel), kThreads, 0, stream>>>(
      static_cast<const T*>(p.input), static_cast<const T*>(p.residual), static_cast<T*>(p.out),
      p.mask, p.numel, all_aligned(p.input, p.residual, p.out));
  return cudaGetLastError();
}

template <class T>
cudaError_t launch_backward(const ReluBackwardMaskParams& p, cudaStream_t stream) {
  relu_backward_mask_kernel<T><<<grid_for(p.numel), kThreads, 0, stream>>>(
      static_cast<const T*>(p.grad), p.mask, static_cast<T*>(p.grad_input), p.numel,
      all_aligned(p.grad, p.grad_input));
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_add_relu(const AddReluParams& params, cudaStream_t stream) {
  if (params.numel == 0) return cudaSuccess;
  switch (params.dtype) {
    case Dtype::f32: return launch_forward<float>(params, stream);
    case Dtype::f16: return launch_forward<__half>(params, stream);
    case Dtype::bf16: return launch_forward<__nv_bfloat16>(params, stream);
    default: return cudaErrorInvalidValue;
  }
}

cudaError_t launch_relu_backward_mask(const ReluBackwardMaskParams& params, cudaStream_t stream) {
  if (params.numel == 0) return cudaSuccess;
  switch (params.dtype) {
    case Dtype::f32: return launch_backward<float>(params, stream);
    case Dtype::f16: return launch_backward<__half>(params, stream);
    case Dtype::bf16: return launch_backward<__nv_bfloat16>(params, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace cnnkernels
