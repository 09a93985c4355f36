// y[m, k] = relu(bias[k] + residual[m, k] + sum x[pixel m shifted by tap, c] w[k, tap, c]), NHWC.
// Transposed implicit GEMM: a tile is 64 or 128 output channels (wgmma's M) x N output pixels, so N
// can be fitted to the number of multiprocessors. Persistent blocks walk the tiles, channels first.
// Warp 0 fetches operands (TMA im2col, or a plain matrix for 1x1) through a ring of stages, warp 1
// prefetches residual tiles into the staging buffers; two consumer warpgroups multiply, add the
// epilogue in registers, stage [pixel][channel] rows and store by TMA while the next tile loads.
// Shared memory: stages of (weights, pixels), staging buffers per warpgroup, barriers.
#include "common/epilogue.cuh"
#include "common/sm90/mbarrier.cuh"
#include "common/sm90/tma.cuh"
#include "common/sm90/wgmma.cuh"
#include "conv2d/conv2d_maps.h"

namespace cnnkernels {
namespace {

struct IgemmParams {
  const void* bias;
  int pixels, k, q, p;  // N * P * Q, output channels, output size
  int c, s;             // input channels, filter width
  int stride_w, stride_h, pad_w, pad_h, dilation_w, dilation_h;
  int steps;  // taps x chunks of 128 bytes of channels
  int channel_tiles, tiles, stages, buffers;
  bool im2col, residual, relu;
};

// Shared memory of an instance, from a 1024-byte boundary on.
template <class T, int kChannels, int kPixels>
struct IgemmLayout {
  static constexpr int kParts = kChannels == 64 ? 2 : 1;  // pixel groups, one per warpgroup or one
  static constexpr int kPartBytes = kPixels * 128;
  static constexpr int kWeightBytes = kChannels * 128;
  static constexpr int kStageBytes = kParts * kPartBytes + kWeightBytes;
  static constexpr int kStaged = plan::staged_pixels(kPixels, sizeof(T));
  static constexpr int kStagedBytes = kStaged * 64 * sizeof(T);
  uint32_t stages, buffers, full, empty, residual_full, residual_empty;

  __device__ IgemmLayout(uint32_t base, const IgemmParams& prm) {
    stages = base;
    buffers = stages + prm.stages * kStageBytes;
    full = buffers + 2 * prm.buffers * kStagedBytes;
    empty = full + prm.stages * 8;
    residual_full = empty + prm.stages * 8;
    residual_empty = residual_full + 2 * prm.buffers * 8;
  }
  __device__ uint32_t pixels(int stage, int part) const {
    return stages + stage * kStageBytes + part * kPartBytes;
  }
  __device__ uint32_t weights(int stage) const {
    return stages + stage * kStageBytes + kParts * kPartBytes;
  }
  __device__ uint32_t buffer(int group, int slot, const IgemmParams& prm) const {
    return buffers + (group * prm.buffers + slot) * kStagedBytes;
  }
};

// Tile `index`: its first output channel and first output pixel.
template <int kChannels, int kPixels>
struct IgemmTile {
  int channel, pixel;
  __device__ IgemmTile(int index, const IgemmParams& prm)
      : channel(index % prm.channel_tiles * kChannels),
        pixel(index / prm.channel_tiles * kPixels * (kChannels == 64 ? 2 : 1)) {}
};

template <class T, int kChannels, int kPixels>
__device__ void produce_operands(const CUtensorMap* x_map, const CUtensorMap* w_map,
                                 const IgemmParams& prm,
                                 const IgemmLayout<T, kChannels, kPixels>& shared) {
  using L = IgemmLayout<T, kChannels, kPixels>;
  constexpr int kChunk = 128 / sizeof(T);
  sm90::RingPosition at{0, 1};
  for (int index = blockIdx.x; index < prm.tiles; index += gridDim.x) {
    const IgemmTile<kChannels, kPixels> tile(index, prm);
    int w[L::kParts], h[L::kParts], n[L::kParts];  // input corner of each part's first pixel
#pragma unroll
    for (int part = 0; part < L::kParts; ++part) {
      const int m = tile.pixel + part * kPixels, row = m / prm.q;
      w[part] = m % prm.q * prm.stride_w - prm.pad_w;
      h[part] = row % prm.p * prm.stride_h - prm.pad_h;
      n[part] = row / prm.p;
    }
    int c = 0, tap = 0, r = 0, s = 0;
    for (int step = 0; step < prm.steps; ++step) {
      sm90::mbarrier_wait(shared.empty + at.slot * 8, at.parity);
      const uint32_t full = shared.full + at.slot * 8;
      sm90::mbarrier_arrive_expect_tx(full, L::kStageBytes);
#pragma unroll
      for (int part = 0; part < L::kParts; ++part) {
        const uint32_t to = shared.pixels(at.slot, part);
        if (prm.im2col)
          sm90::tma_load_im2col(to, x_map, full, c, w[part], h[part], n[part], s * prm.dilation_w,
                                r * prm.dilation_h);
        else
          sm90::tma_load_2d(to, x_map, full, c, tile.pixel + part * kPixels);
      }
      sm90::tma_load_3d(shared.weights(at.slot), w_map, full, c, tap, tile.channel);
      if ((c += kChunk) >= prm.c) {
        c = 0, ++tap;
        if (++s == prm.s) s = 0, ++r;
      }
      at.advance(prm.stages);
    }
  }
}

template <class T, int kChannels, int kPixels>
__device__ void produce_residual(const CUtensorMap* z_map, const IgemmParams& prm,
                                 const IgemmLayout<T, kChannels, kPixels>& shared) {
  using L = IgemmLayout<T, kChannels, kPixels>;
  sm90::RingPosition at{0, 1};
  for (int index = blockIdx.x; index < prm.tiles; index += gridDim.x) {
    const IgemmTile<kChannels, kPixels> tile(index, prm);
    for (int first = 0; first < kPixels; first += L::kStaged) {
      for (int group = 0; group < 2; ++group) {
        const int barrier = (group * prm.buffers + at.slot) * 8;
        const int channel = tile.channel + (kChannels == 128 ? group * 64 : 0);
        const int pixel = tile.pixel + (kChannels == 64 ? group * kPixels : 0) + first;
        const uint32_t to = shared.buffer(group, at.slot, prm);
        sm90::mbarrier_wait(shared.residual_empty + barrier, at.parity);
        sm90::mbarrier_arrive_expect_tx(shared.residual_full + barrier, L::kStagedBytes);
#pragma unroll
        for (int plane = 0; plane < int(sizeof(T)) / 2; ++plane)
          sm90::tma_load_2d(to + plane * L::kStaged * 128, z_map, shared.residual_full + barrier,
                            channel + plane * 32, pixel);
      }
      at.advance(prm.buffers);
    }
  }
}

// Waits until the oldest of `buffers` staging buffers has been read by its store.
__device__ __forceinline__ void wait_for_buffer(int buffers) {
  if (buffers == 1)
    sm90::tma_store_wait_read<0>();
  else if (buffers == 2)
    sm90::tma_store_wait_read<1>();
  else
    sm90::tma_store_wait_read<2>();
}

template <class T, int kChannels, int kPixels>
struct Consumer {
  using L = IgemmLayout<T, kChannels, kPixels>;
  const IgemmParams& prm;
  const L& shared;
  const CUtensorMap* y_map;
  const int group, thread;  // warpgroup 0 or 1, thread of 128
  float acc[kPixels / 2];
  sm90::RingPosition stage, buffer;
  int unreleased = -1;  // residual buffer whose store may still read it

  // One stage of operands behind: its wgmma has finished when the next one has been issued.
  __device__ __forceinline__ void multiply() {
    const int lane = thread % 32;
    int previous = 0;
    for (int step = 0; step < prm.steps; ++step) {
      sm90::mbarrier_wait(shared.full + stage.slot * 8, stage.parity);
      const uint64_t pixels =
          sm90::swizzled_descriptor<128>(shared.pixels(stage.slot, kChannels == 64 ? group : 0));
      const uint64_t weights = sm90::swizzled_descriptor<128>(
          shared.weights(stage.slot) + (kChannels == 128 ? group * 64 * 128 : 0));
      sm90::wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k)  // 32 bytes of channels each
        sm90::wgmma<T, kPixels>(acc, weights + k * 2, pixels + k * 2, (step | k) != 0);
      sm90::wgmma_commit();
      if (step > 0) {
        sm90::wgmma_wait<1>();
        if (lane == 0) sm90::mbarrier_arrive(shared.empty + previous * 8);
        __syncwarp();
      }
      previous = stage.slot;
      stage.advance(prm.stages);
    }
    sm90::wgmma_wait<0>();
    if (lane == 0) sm90::mbarrier_arrive(shared.empty + previous * 8);
    __syncwarp();
  }

  template <int kFirst>
  __device__ __forceinline__ void store_part(int channel, int pixel, float bias0, float bias1) {
    const int barrier = (group * prm.buffers + buffer.slot) * 8;
    const uint32_t staged = shared.buffer(group, buffer.slot, prm);
    if (prm.residual)
      sm90::mbarrier_wait(shared.residual_full + barrier, buffer.parity);
    else if (thread == 0)
      wait_for_buffer(prm.buffers);
    __syncwarp();
    sm90::named_barrier_sync(1 + group, 128);
    sm90::store_transposed<T, L::kStaged, kFirst>(acc, bias0, bias1, prm.relu, staged, thread,
                                                  prm.residual);
    sm90::fence_proxy_async();
    sm90::named_barrier_sync(1 + group, 128);
    if (thread == 0) {
      if (pixel + kFirst < prm.pixels)
#pragma unroll
        for (int plane = 0; plane < int(sizeof(T)) / 2; ++plane)
          if (channel + plane * 32 < prm.k)
            sm90::tma_store_2d(y_map, staged + plane * L::kStaged * 128, channel + plane * 32,
                               pixel + kFirst);
      sm90::tma_store_commit();
      if (prm.residual) {  // the store before this one has read its buffer by now
        if (unreleased >= 0) {
          sm90::tma_store_wait_read<1>();
          sm90::mbarrier_arrive(shared.residual_empty + unreleased);
        }
        unreleased = barrier;
      }
    }
    __syncwarp();
    buffer.advance(prm.buffers);
    if constexpr (kFirst + L::kStaged < kPixels)
      store_part<kFirst + L::kStaged>(channel, pixel, bias0, bias1);
  }

  __device__ __forceinline__ void run() {
    const T* bias = static_cast<const T*>(prm.bias);
    for (int index = blockIdx.x; index < prm.tiles; index += gridDim.x) {
      const IgemmTile<kChannels, kPixels> tile(index, prm);
      const int channel = tile.channel + (kChannels == 128 ? group * 64 : 0);
      const int pixel = tile.pixel + (kChannels == 64 ? group * kPixels : 0);
      const int mine = channel + thread / 32 * 16 + thread % 32 / 4;
      const float bias0 = bias && mine < prm.k ? to_float(bias[mine]) : 0.f;
      const float bias1 = bias && mine + 8 < prm.k ? to_float(bias[mine + 8]) : 0.f;
      multiply();
      store_part<0>(channel, pixel, bias0, bias1);
    }
    if (thread == 0) sm90::tma_store_wait<0>();
  }
};

template <class T, int kChannels, int kPixels>
__global__ void __launch_bounds__(384, 1)
    conv2d_igemm_kernel(const __grid_constant__ CUtensorMap x_map,
                        const __grid_constant__ CUtensorMap w_map,
                        const __grid_constant__ CUtensorMap y_map,
                        const __grid_constant__ CUtensorMap z_map, const IgemmParams prm) {
  extern __shared__ uint8_t shared_raw[];
  const IgemmLayout<T, kChannels, kPixels> shared(
      (sm90::shared_address(shared_raw) + 1023) & ~1023u, prm);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < prm.stages; ++i) {
      sm90::mbarrier_init(shared.full + i * 8, 1);
      sm90::mbarrier_init(shared.empty + i * 8, 8);  // every consumer warp
    }
    for (int i = 0; i < 2 * prm.buffers; ++i) {
      sm90::mbarrier_init(shared.residual_full + i * 8, 1);
      sm90::mbarrier_init(shared.residual_empty + i * 8, 1);
    }
    sm90::fence_mbarrier_init();
    sm90::fence_proxy_async();
    sm90::prefetch_tensor_map(&x_map);
    sm90::prefetch_tensor_map(&w_map);
    sm90::prefetch_tensor_map(&y_map);
  }
  __syncthreads();

  if (warp < 4) {
    sm90::setmaxnreg_dec<40>();
    if (warp == 0 && lane == 0)
      produce_operands<T, kChannels, kPixels>(&x_map, &w_map, prm, shared);
    if (warp == 1 && lane == 0 && prm.residual)
      produce_residual<T, kChannels, kPixels>(&z_map, prm, shared);
    return;
  }
  sm90::setmaxnreg_inc<232>();
  Consumer<T, kChannels, kPixels> consumer{prm, shared, &y_map, warp / 4 - 1,
                                           static_cast<int>(threadIdx.x % 128)};
  consumer.run();
}

template <class T, int kChannels, int kPixels>
cudaError_t launch(const ConvGroup& g, cudaStream_t stream) {
  const plan::ConvProblem& x = g.params.problem;
  const plan::ConvPlan& plan = g.plan;
  constexpr int kElement = sizeof(T);
  IgemmParams prm{};
  prm.bias = g.params.bias;
  prm.pixels = static_cast<int>(x.pixels()), prm.k = x.k, prm.q = x.q(), prm.p = x.p();
  prm.c = x.c, prm.s = x.s;
  prm.stride_w = x.stride_w, prm.stride_h = x.stride_h;
  prm.pad_w = x.pad_w, prm.pad_h = x.pad_h;
  prm.dilation_w = x.dilation_w, prm.dilation_h = x.dilation_h;
  prm.steps = plan.chunks * x.r * x.s;
  prm.channel_tiles = plan.channel_tiles, prm.tiles = static_cast<int>(plan.tiles());
  prm.stages = plan.stages, prm.buffers = plan.buffers;
  prm.im2col = !x.pointwise(), prm.residual = g.params.residual != nullptr,
  prm.relu = g.params.relu;

  constexpr int kStaged = IgemmLayout<T, kChannels, kPixels>::kStaged;
  const int chunk = 128 / kElement;
  CUtensorMap x_map, w_map, y_map, z_map;
  cudaError_t error = encode(&x_map,
                             prm.im2col ? plan::im2col_map(x, g.input_pitch, 128, kPixels)
                                        : plan::matrix_map(x, x.c, g.input_pitch, chunk, kPixels),
                             x.dtype, g.params.input, true);
  if (error == cudaSuccess)
    error = encode(&w_map, plan::weight_map(x, 128, kChannels), x.dtype, g.params.weight, true);
  if (error == cudaSuccess)
    error = encode(&y_map, plan::matrix_map(x, x.k, g.params.output_pitch, chunk, kStaged), x.dtype,
                   g.params.output, false);
  z_map = y_map;
  if (error == cudaSuccess && prm.residual)
    error = encode(&z_map, plan::matrix_map(x, x.k, g.residual_pitch, chunk, kStaged), x.dtype,
                   g.params.residual, false);
  if (error != cudaSuccess) return error;
  return launch_kernel(conv2d_igemm_kernel<T, kChannels, kPixels>, plan.grid, plan.shared_bytes,
                       stream, x_map, w_map, y_map, z_map, prm);
}

template <class T>
cudaError_t dispatch(const ConvGroup& g, cudaStream_t stream) {
  const plan::Instance& i = *g.plan.instance;
  if (i.channels == 64) {
    switch (i.pixels) {
      case 64: return launch<T, 64, 64>(g, stream);
      case 128: return launch<T, 64, 128>(g, stream);
      case 256: return launch<T, 64, 256>(g, stream);
    }
    return cudaErrorInvalidValue;
  }
  switch (i.pixels) {
    case 64: return launch<T, 128, 64>(g, stream);
    case 96: return launch<T, 128, 96>(g, stream);
    case 128: return launch<T, 128, 128>(g, stream);
    case 160: return launch<T, 128, 160>(g, stream);
    case 192: return launch<T, 128, 192>(g, stream);
    case 224: return launch<T, 128, 224>(g, stream);
    case 256: return launch<T, 128, 256>(g, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch_conv2d_igemm(const ConvGroup& group, cudaStream_t stream) {
  return dispatch_type(group.params.problem.dtype,
                       [&](auto zero) { return dispatch<decltype(zero)>(group, stream); });
}

}  // namespace cnnkernels
