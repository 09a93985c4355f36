// y[m, k] = relu(bias[k] + residual[m, k] + sum x[pixel m shifted by tap, c] w[k, tap, c]), NHWC.
// Transposed implicit GEMM: a tile is 64 or 128 output channels (wgmma's M) x N output pixels, so N
// can be fitted to the number of multiprocessors. Persistent blocks walk the tiles, channels first.
// Warp 0 fetches operands (TMA im2col, or a plain matrix for 1x1) through a ring of stages, warp 1
// prefetches residual tiles into the staging buffers; two consumer warpgroups multiply, add the
// epilogue in registers, stage [pixel][channel] rows and store by TMA while the next tile loads.
// Shared memory: stages of (weights, pixels), staging buffers per warpgroup, barriers.
#include "conv2d/conv2d_igemm.cuh"

namespace cnnkernels {
namespace {

template <class T, int kChannels, int kPixels>
using Layout = IgemmLayout<T, kChannels, kPixels, plan::staged_pixels(kPixels, sizeof(T))>;

template <class T, int kChannels, int kPixels>
__device__ void produce_operands(const IgemmMaps& maps, const IgemmParams& prm,
                                 const Layout<T, kChannels, kPixels>& shared) {
  sm90::RingPosition at{0, 1};
  for (int index = blockIdx.x; index < prm.tiles; index += gridDim.x)
    fetch_tile<T>(maps, {0, prm.main.steps + prm.shortcut.steps},
                  IgemmTile<kChannels, kPixels>(index, prm), prm, shared, at);
}

template <class T, int kChannels, int kPixels>
__device__ void produce_residual(const CUtensorMap* z_map, const IgemmParams& prm,
                                 const Layout<T, kChannels, kPixels>& shared) {
  using L = Layout<T, kChannels, kPixels>;
  sm90::RingPosition at{0, 1};
  for (int index = blockIdx.x; index < prm.tiles; index += gridDim.x) {
    const IgemmTile<kChannels, kPixels> tile(index, prm);
    for (int first = 0; first < kPixels; first += L::kStaged) {
      for (int group = 0; group < 2; ++group) {
        const int barrier = (group * prm.buffers + at.slot) * 8;
        sm90::mbarrier_wait(shared.residual_empty + barrier, at.parity);
        fetch_residual<T, L::kStaged>(z_map, shared.buffer(group, at.slot, prm),
                                      shared.residual_full + barrier,
                                      tile.channel + (kChannels == 128 ? group * 64 : 0),
                                      tile.pixel + (kChannels == 64 ? group * kPixels : 0) + first);
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
  using L = Layout<T, kChannels, kPixels>;
  const IgemmMaps& maps;
  const IgemmParams& prm;
  const L& shared;
  const int group, thread;  // warpgroup 0 or 1, thread of 128
  float acc[kPixels / 2];
  sm90::RingPosition stage, buffer;
  int unreleased = -1;  // residual buffer whose store may still read it

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
      store_staged<T, L::kStaged>(maps, staged, channel, pixel + kFirst, prm);
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
      multiply<T>(acc, prm.main.steps + prm.shortcut.steps, prm, shared, group, thread % 32, stage);
      store_part<0>(channel, pixel, bias0, bias1);
    }
    if (thread == 0) sm90::tma_store_wait<0>();
  }
};

template <class T, int kChannels, int kPixels>
__global__ void __launch_bounds__(384, 1)
    conv2d_igemm_kernel(const __grid_constant__ IgemmMaps maps,
                        const __grid_constant__ IgemmParams prm) {
  const Layout<T, kChannels, kPixels> shared(sm90::dynamic_shared_memory(), prm);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) shared.initialise(maps, prm);
  __syncthreads();
  sm90::wait_for_previous_kernel();
  sm90::start_next_kernel();

  if (warp < 4) {
    sm90::setmaxnreg_dec<40>();
    if (warp == 0 && lane == 0) produce_operands<T, kChannels, kPixels>(maps, prm, shared);
    if (warp == 1 && lane == 0 && prm.residual)
      produce_residual<T, kChannels, kPixels>(&maps.z, prm, shared);
    return;
  }
  sm90::setmaxnreg_inc<232>();
  Consumer<T, kChannels, kPixels> consumer{maps, prm, shared, warp / 4 - 1,
                                           static_cast<int>(threadIdx.x % 128)};
  consumer.run();
}

template <class T, int kChannels, int kPixels>
cudaError_t launch(const ConvGroup& g, cudaStream_t stream) {
  IgemmMaps maps;
  const cudaError_t error = igemm_maps(g, Layout<T, kChannels, kPixels>::kStaged, &maps);
  if (error != cudaSuccess) return error;
  return launch_kernel<conv2d_igemm_kernel<T, kChannels, kPixels>>(
      {g.plan.grid, g.plan.shared_bytes, 1, g.params.early_start}, stream, maps, igemm_params(g));
}

template <class T>
cudaError_t dispatch(const ConvGroup& g, cudaStream_t stream) {
  const plan::Instance& i = *g.plan.instance;
  if (i.channels == 64) {
    switch (i.pixels) {
      case 64: return launch<T, 64, 64>(g, stream);
      case 128: return launch<T, 64, 128>(g, stream);
      case 192: return launch<T, 64, 192>(g, stream);
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
    case 208: return launch<T, 128, 208>(g, stream);
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
