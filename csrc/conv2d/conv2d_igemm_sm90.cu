// y[m, k] = relu(bias[k] + residual[m, k] + sum x[pixel m shifted by tap, c] w[k, tap, c]), NHWC.
// Transposed implicit GEMM: a tile is 64 or 128 output channels (wgmma's M) x N output pixels, so N
// can be fitted to the number of multiprocessors. Persistent blocks walk the tiles, channels first.
// Warp 0 fetches operands (TMA im2col, or a plain matrix for 1x1) through a ring of stages, warp 1
// prefetches residual tiles into the staging buffers; two consumer warpgroups multiply, add the
// epilogue in registers, stage [pixel][channel] rows and store by TMA while the next tile loads.
// Shared memory: stages of (weights, pixels), staging buffers per warpgroup, barriers.
#include "conv2d/conv2d_igemm_output.cuh"

namespace cnnkernels {
namespace {

template <class T, int kChannels, int kPixels>
__device__ void produce_operands(const IgemmMaps& maps, const IgemmParams& prm,
                                 const StagedLayout<T, kChannels, kPixels>& shared) {
  sm90::RingPosition at{0, 1};
  for (int index = blockIdx.x; index < prm.tiles; index += gridDim.x)
    fetch_tile<T>(maps, {0, prm.main.steps + prm.shortcut.steps},
                  IgemmTile<kChannels, kPixels>(index, prm), prm, shared, at);
}

template <class T, int kChannels, int kPixels>
__device__ void produce_residual(const CUtensorMap* z_map, const IgemmParams& prm,
                                 const StagedLayout<T, kChannels, kPixels>& shared) {
  using L = StagedLayout<T, kChannels, kPixels>;
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

template <class T, int kChannels, int kPixels>
__device__ void consume(const IgemmMaps& maps, const IgemmParams& prm,
                        const StagedLayout<T, kChannels, kPixels>& shared, int group, int thread) {
  float acc[1][kPixels / 2];
  sm90::RingPosition stage;
  OutputRing<T, kChannels, kPixels> output{maps, prm, shared, group, thread};
  for (int index = blockIdx.x; index < prm.tiles; index += gridDim.x) {
    const IgemmTile<kChannels, kPixels> tile(index, prm);
    const int row = kChannels == 128 ? group * 64 : 0, part = kChannels == 64 ? group : 0;
    const ChannelBias<T> bias(prm, tile.channel + row, thread);
    multiply<T>(acc, prm.main.steps + prm.shortcut.steps, prm, shared, part, row, thread % 32,
                stage, [] {});
    output.store(acc[0], tile.channel + row, tile.pixel + part * kPixels, bias);
  }
  if (thread == 0) sm90::tma_store_wait<0>();
}

template <class T, int kChannels, int kPixels>
__global__ void __launch_bounds__(384, 1)
    conv2d_igemm_kernel(const __grid_constant__ IgemmMaps maps,
                        const __grid_constant__ IgemmParams prm) {
  const StagedLayout<T, kChannels, kPixels> shared(sm90::dynamic_shared_memory(), prm);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) shared.initialise(maps, prm, 8);
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
  consume<T, kChannels, kPixels>(maps, prm, shared, warp / 4 - 1, threadIdx.x % 128);
}

template <class T, int kChannels, int kPixels>
cudaError_t launch(const ConvGroup& g, cudaStream_t stream) {
  IgemmMaps maps;
  const cudaError_t error = igemm_maps(g, StagedLayout<T, kChannels, kPixels>::kStaged, &maps);
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
