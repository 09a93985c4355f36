// The implicit GEMM of conv2d_igemm_sm90.cu with its epilogue under the next tile's products: each
// of the two consumer warpgroups owns whole tiles of 128 output channels x N pixels, the even and
// the odd ones of its block, and while one stages and stores its sums the other keeps the tensor
// cores busy. They read one ring of stages in turn: a warpgroup starts when the other has issued
// its last wgmma (a named barrier) and skips the other's stages. So the wgmma of a block run in the
// order of its tiles, and no warpgroup is ever a round of the ring ahead of the barriers' parity.
// Warps 1 and 2 prefetch the residual, each for one warpgroup. Shared memory as in the base kernel.
#include "conv2d/conv2d_igemm_output.cuh"

namespace cnnkernels {
namespace {

constexpr int kTurn = 3;  // named barrier: warpgroup 0's turn; the next one: warpgroup 1's

template <class T, int kPixels>
__device__ void prefetch_residual(const CUtensorMap* z_map, const IgemmParams& prm,
                                  const StagedLayout<T, 128, kPixels>& shared, int group) {
  using L = StagedLayout<T, 128, kPixels>;
  sm90::RingPosition at{0, 1};
  for (int index = blockIdx.x + group * gridDim.x; index < prm.tiles; index += 2 * gridDim.x) {
    const IgemmTile<128, kPixels> tile(index, prm);
    for (int half = 0; half < 2; ++half)
      for (int first = 0; first < kPixels; first += L::kStaged) {
        const int barrier = (group * prm.buffers + at.slot) * 8;
        sm90::mbarrier_wait(shared.residual_empty + barrier, at.parity);
        fetch_residual<T, L::kStaged>(z_map, shared.buffer(group, at.slot, prm),
                                      shared.residual_full + barrier, tile.channel + half * 64,
                                      tile.pixel + first);
        at.advance(prm.buffers);
      }
  }
}

template <class T, int kPixels>
__device__ void consume(const IgemmMaps& maps, const IgemmParams& prm,
                        const StagedLayout<T, 128, kPixels>& shared, int group, int thread) {
  const int steps = prm.main.steps + prm.shortcut.steps;
  float acc[2][kPixels / 2];
  sm90::RingPosition stage;
  OutputRing<T, 128, kPixels> output{maps, prm, shared, group, thread};
  if (group == 1) stage.skip(steps, prm.stages);
  for (int index = blockIdx.x + group * gridDim.x; index < prm.tiles; index += 2 * gridDim.x) {
    const IgemmTile<128, kPixels> tile(index, prm);
    if (index >= gridDim.x) sm90::named_barrier_sync(kTurn + group, 256);
    multiply<T>(acc, steps, prm, shared, 0, 0, thread % 32, stage, [&] {
      if (index + gridDim.x < prm.tiles) sm90::named_barrier_arrive(kTurn + 1 - group, 256);
    });
    stage.skip(steps, prm.stages);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int channel = tile.channel + half * 64;
      output.store(acc[half], channel, tile.pixel, ChannelBias<T>(prm, channel, thread));
    }
  }
  if (thread == 0) sm90::tma_store_wait<0>();
}

template <class T, int kPixels>
__global__ void __launch_bounds__(384, 1)
    conv2d_igemm_pingpong_kernel(const __grid_constant__ IgemmMaps maps,
                                 const __grid_constant__ IgemmParams prm) {
  const StagedLayout<T, 128, kPixels> shared(sm90::dynamic_shared_memory(), prm);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) shared.initialise(maps, prm, 4);
  __syncthreads();
  sm90::wait_for_previous_kernel();
  sm90::start_next_kernel();

  if (warp < 4) {
    sm90::setmaxnreg_dec<40>();
    if (lane != 0) return;
    if (warp == 0) {
      sm90::RingPosition at{0, 1};
      for (int index = blockIdx.x; index < prm.tiles; index += gridDim.x)
        fetch_tile<T>(maps, {0, prm.main.steps + prm.shortcut.steps},
                      IgemmTile<128, kPixels>(index, prm), prm, shared, at);
    } else if (warp < 3 && prm.residual) {
      prefetch_residual<T, kPixels>(&maps.z, prm, shared, warp - 1);
    }
    return;
  }
  sm90::setmaxnreg_inc<232>();
  consume<T, kPixels>(maps, prm, shared, warp / 4 - 1, threadIdx.x % 128);
}

template <class T, int kPixels>
cudaError_t launch(const ConvGroup& g, cudaStream_t stream) {
  IgemmMaps maps;
  const cudaError_t error = igemm_maps(g, StagedLayout<T, 128, kPixels>::kStaged, &maps);
  if (error != cudaSuccess) return error;
  return launch_kernel<conv2d_igemm_pingpong_kernel<T, kPixels>>(
      {g.plan.grid, g.plan.shared_bytes, 1, g.params.early_start}, stream, maps, igemm_params(g));
}

template <class T>
cudaError_t dispatch(const ConvGroup& g, cudaStream_t stream) {
  switch (g.plan.instance->pixels) {
    case 96: return launch<T, 96>(g, stream);
    case 144: return launch<T, 144>(g, stream);
    case 192: return launch<T, 192>(g, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch_conv2d_igemm_pingpong(const ConvGroup& group, cudaStream_t stream) {
  return dispatch_type(group.params.problem.dtype,
                       [&](auto zero) { return dispatch<decltype(zero)>(group, stream); });
}

}  // namespace cnnkernels
