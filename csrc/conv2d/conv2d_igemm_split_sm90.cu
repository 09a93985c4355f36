// The implicit GEMM of conv2d_igemm_sm90.cu for few tiles of long sums (7x7 maps, small batches): a
// cluster of 2, 4 or 8 blocks shares the K of one tile of 128 output channels x N pixels. Each
// block multiplies its run of steps and leaves fp32 partial sums in its shared memory; then each
// sums one slice of the pixels over all blocks, in rank order, so the result does not depend on
// timing, adds the epilogue and stores it. No workspace, no atomics. Block b: tile b / kSplit, rank
// b % kSplit. Shared memory: stages (afterwards partial sums, one float4 per thread and 8 pixels),
// a staging buffer per warpgroup, barriers.
#include "conv2d/conv2d_igemm_output.cuh"

namespace cnnkernels {
namespace {

template <class T, int kPixels, int kSplit>
__global__ void __launch_bounds__(384, 1)
    conv2d_igemm_split_kernel(const __grid_constant__ IgemmMaps maps,
                              const __grid_constant__ IgemmParams prm) {
  constexpr int kSlice = kPixels / kSplit;  // pixels a block finishes
  static_assert(kSlice % 8 == 0);
  const IgemmLayout<T, 128, kPixels, kSlice> shared(sm90::dynamic_shared_memory(), prm);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) shared.initialise(maps, prm, 8);
  __syncthreads();
  sm90::cluster_arrive();
  sm90::wait_for_previous_kernel();
  sm90::start_next_kernel();
  sm90::cluster_wait();  // every block has started: its shared memory may be read
  const int rank = static_cast<int>(sm90::cluster_rank());
  const IgemmTile<128, kPixels> tile(blockIdx.x / kSplit, prm);
  const plan::StepRange range =
      plan::split_steps(prm.main.steps + prm.shortcut.steps, rank, kSplit);
  const int pixel = tile.pixel + rank * kSlice;  // first of the slice

  if (warp < 4) {
    sm90::setmaxnreg_dec<40>();
    sm90::RingPosition at{0, 1};
    if (warp == 0 && lane == 0) fetch_tile<T>(maps, range, tile, prm, shared, at);
    if (warp == 1 && lane == 0 && prm.residual)
      for (int group = 0; group < 2; ++group)
        fetch_residual<T, kSlice>(&maps.z, shared.buffer(group, 0, prm),
                                  shared.residual_full + group * 8, tile.channel + group * 64,
                                  pixel);
    __syncwarp();
    for (int phase = 0; phase < 2; ++phase) sm90::cluster_arrive(), sm90::cluster_wait();
    return;
  }

  sm90::setmaxnreg_inc<232>();
  const int group = warp / 4 - 1, thread = threadIdx.x % 128;
  const int channel = tile.channel + group * 64;
  const ChannelBias<T> bias(prm, channel, thread);
  // Where this thread's sums of 8 pixels lie, in every block.
  auto partial = [&](int eight) {
    return shared.stages + ((group * (kPixels / 8) + eight) * 128 + thread) * 16;
  };
  {
    float acc[1][kPixels / 2];
    sm90::RingPosition stage;
    multiply<T>(acc, range.last - range.first, prm, shared, 0, group * 64, lane, stage, [] {});
    sm90::named_barrier_sync(3, 256);  // both warpgroups have read their last stage
#pragma unroll
    for (int i = 0; i < kPixels / 8; ++i)
      sm90::shared_store(partial(i),
                         {acc[0][4 * i], acc[0][4 * i + 1], acc[0][4 * i + 2], acc[0][4 * i + 3]});
  }
  __syncwarp();
  sm90::cluster_arrive();
  sm90::cluster_wait();  // every block has written its partial sums

  float sum[kSlice / 2];
#pragma unroll
  for (int i = 0; i < kSlice / 2; ++i) sum[i] = 0;
#pragma unroll 1
  for (int peer = 0; peer < kSplit; ++peer) {
    const uint32_t remote = sm90::cluster_address(partial(rank * (kSlice / 8)), peer);
#pragma unroll
    for (int i = 0; i < kSlice / 8; ++i) {
      const float4 v = sm90::cluster_load(remote + i * 2048);
      sum[4 * i] += v.x, sum[4 * i + 1] += v.y, sum[4 * i + 2] += v.z, sum[4 * i + 3] += v.w;
    }
  }
  __syncwarp();
  sm90::cluster_arrive();  // the peers' memory is not read any more

  const uint32_t staged = shared.buffer(group, 0, prm);
  if (prm.residual) sm90::mbarrier_wait(shared.residual_full + group * 8, 0);
  __syncwarp();
  sm90::store_transposed<T, kSlice>(sum, bias.low, bias.high, prm.relu, staged, thread,
                                    prm.residual);
  sm90::fence_proxy_async();
  sm90::named_barrier_sync(1 + group, 128);
  if (thread == 0) {
    store_staged<T, kSlice>(maps, staged, channel, pixel, prm);
    sm90::tma_store_commit();
    sm90::tma_store_wait<0>();
  }
  __syncwarp();
  sm90::cluster_wait();  // peers may still be reading this block's sums
}

template <class T, int kPixels, int kSplit>
cudaError_t launch(const ConvGroup& g, cudaStream_t stream) {
  IgemmMaps maps;
  const cudaError_t error = igemm_maps(g, kPixels / kSplit, &maps);
  if (error != cudaSuccess) return error;
  return launch_kernel<conv2d_igemm_split_kernel<T, kPixels, kSplit>>(
      {g.plan.grid, g.plan.shared_bytes, kSplit, g.params.early_start}, stream, maps,
      igemm_params(g));
}

template <class T>
cudaError_t dispatch(const ConvGroup& g, cudaStream_t stream) {
  const plan::Instance& i = *g.plan.instance;
  switch (i.pixels * 10 + i.split) {
    case 2082: return launch<T, 208, 2>(g, stream);
    case 1282: return launch<T, 128, 2>(g, stream);
    case 2244: return launch<T, 224, 4>(g, stream);
    case 1284: return launch<T, 128, 4>(g, stream);
    case 644: return launch<T, 64, 4>(g, stream);
    case 648: return launch<T, 64, 8>(g, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch_conv2d_igemm_split(const ConvGroup& group, cudaStream_t stream) {
  return dispatch_type(group.params.problem.dtype,
                       [&](auto zero) { return dispatch<decltype(zero)>(group, stream); });
}

}  // namespace cnnkernels
