// y = relu(x) and one bit per element, over flat memory. Thread = 8 consecutive elements, so the
// mask byte is its own; no shared memory. NaN stays NaN and passes the gradient, as in torch.
#include "common/dispatch.cuh"
#include "common/eight.cuh"
#include "relu/relu.h"

namespace cnnkernels {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads)
    relu_mask_kernel(const T* __restrict__ x, T* __restrict__ y, uint8_t* __restrict__ mask,
                     int64_t numel, bool aligned) {
  const int64_t chunk = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t first = chunk * kEight;
  if (first >= numel) return;
  const int count = static_cast<int>(min(int64_t{kEight}, numel - first));
  float v[kEight];
  load8(x + first, aligned, count, v);
  unsigned bits = 0;
#pragma unroll
  for (int e = 0; e < kEight; ++e) {
    const bool pass = !(v[e] <= 0.f);
    v[e] = pass ? v[e] : 0.f;
    bits |= unsigned{pass} << e;
  }
  store8(y + first, aligned, count, v);
  mask[chunk] = static_cast<uint8_t>(bits & ((1u << count) - 1));
}

}  // namespace

cudaError_t launch_relu_mask(const ReluMaskParams& p, cudaStream_t stream) {
  if (p.numel == 0) return cudaSuccess;
  return dispatch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    const auto blocks = static_cast<unsigned>(ceil_div(p.numel, int64_t{kThreads} * kEight));
    relu_mask_kernel<T>
        <<<blocks, kThreads, 0, stream>>>(static_cast<const T*>(p.x), static_cast<T*>(p.y), p.mask,
                                          p.numel, aligned_to(p.x, 16) && aligned_to(p.y, 16));
    return cudaGetLastError();
  });
}

}  // namespace cnnkernels
