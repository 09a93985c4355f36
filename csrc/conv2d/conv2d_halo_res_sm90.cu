// Stride-1 convolution of few input channels (one 32/64/128-byte row per pixel), bias,
// residual, ReLU, 2x2 max-pool. A block keeps all R x S weight tiles of 64 output channels in
// shared memory and walks pixel tiles; its two consumer warpgroups take tiles alternately. A tile's
// input box (plan::HaloTile) is loaded once, every tap multiplies it from a shifted start address,
// and the finished output is staged where the box was: no weight traffic, one barrier wait per
// tile, R x S x 2..4 wgmma back to back. Shared memory: two boxes per warpgroup, weights, barriers.
// Im2col re-reads each pixel R x S times from L2, which limits 64-channel layers to half the tensor
// cores' rate; this kernel reaches 95 %.
#include "conv2d/conv2d_halo.cuh"

namespace cnnkernels {
namespace {

constexpr int kBoxes = 2;  // per warpgroup

template <class T, int kPixels, int kRowBytes>
__global__ void __launch_bounds__(384, 1)
    conv2d_halo_res_kernel(const __grid_constant__ HaloMaps maps, const HaloParams prm) {
  constexpr int kWeightBytes = 64 * kRowBytes;  // one tap
  const int taps = prm.r * prm.s;
  // Pixels that are thrown away are read from behind the box: behind the last one are the weights.
  const uint32_t boxes = (sm90::dynamic_shared_memory() + 1023) & ~1023u;
  const uint32_t weights = boxes + 2 * kBoxes * prm.box_slot;
  const uint32_t full = weights + ((taps * kWeightBytes + 1023) & ~1023);
  const uint32_t empty = full + 2 * kBoxes * 8;
  const uint32_t weights_full = empty + 2 * kBoxes * 8, residual_full = weights_full + 8;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2 * kBoxes; ++i) {
      sm90::mbarrier_init(full + i * 8, 1);
      sm90::mbarrier_init(empty + i * 8, 1);
    }
    sm90::mbarrier_init(weights_full, 1);
    for (int i = 0; i < 2; ++i) sm90::mbarrier_init(residual_full + i * 8, 1);
    sm90::fence_mbarrier_init();
    sm90::fence_proxy_async();
    sm90::prefetch_tensor_map(&maps.x);
    sm90::prefetch_tensor_map(&maps.w);
    sm90::prefetch_tensor_map(&maps.y);
  }
  __syncthreads();
  sm90::wait_for_previous_kernel();
  sm90::start_next_kernel();

  // A block keeps one tile of channels; blocks of the same channels share the pixel tiles.
  const int channel = blockIdx.x % prm.channel_tiles * 64;
  const int first = blockIdx.x / prm.channel_tiles, stride = gridDim.x / prm.channel_tiles;

  if (warp < 4) {
    sm90::setmaxnreg_dec<40>();
    if (warp != 0 || lane != 0) return;
    sm90::mbarrier_arrive_expect_tx(weights_full, taps * kWeightBytes);
    for (int tap = 0; tap < taps; ++tap)
      sm90::tma_load_3d(weights + tap * kWeightBytes, &maps.w, weights_full, 0, tap, channel);
    for (int i = 0, index = first; index < prm.pixel_tiles; ++i, index += stride) {
      const int use = i / 2;  // how often this warpgroup has had a tile
      const int slot = i % 2 * kBoxes + use % kBoxes;
      const HaloPosition at(index, prm);
      sm90::mbarrier_wait(empty + slot * 8, use / kBoxes & 1 ^ 1);
      sm90::mbarrier_arrive_expect_tx(full + slot * 8, prm.box_bytes);
      sm90::tma_load_4d(boxes + slot * prm.box_slot, &maps.x, full + slot * 8, 0, at.q - prm.pad_w,
                        at.p - prm.pad_h, at.n);
      if (prm.residual_bytes)  // read again when the box is free to take it: from L2 then
        sm90::tma_prefetch_4d(&maps.z, channel, at.q, at.p, at.n);
    }
    return;
  }

  sm90::setmaxnreg_inc<232>();
  const int group = warp / 4 - 1, thread = threadIdx.x % 128;
  const T* bias = static_cast<const T*>(prm.bias);
  const int mine = channel + thread / 32 * 16 + lane / 4;
  const float bias0 = bias && mine < prm.k ? to_float(bias[mine]) : 0.f;
  const float bias1 = bias && mine + 8 < prm.k ? to_float(bias[mine + 8]) : 0.f;
  float acc[kPixels / 2];
  int storing = -1;  // box whose output store may still read it
  sm90::mbarrier_wait(weights_full, 0);
  for (int use = 0, index = first + group * stride; index < prm.pixel_tiles;
       ++use, index += 2 * stride) {
    const int slot = group * kBoxes + use % kBoxes;
    const uint32_t box = boxes + slot * prm.box_slot;
    const HaloPosition at(index, prm);
    sm90::mbarrier_wait(full + slot * 8, use / kBoxes & 1);

    // Every tap: the same box from a shifted start.
    uint32_t weight = weights;
    sm90::wgmma_fence();
    for (int r = 0; r < prm.r; ++r)
      for (int s = 0; s < prm.s; ++s, weight += kWeightBytes) {
        const uint64_t pixels = sm90::window_descriptor<kRowBytes>(
            box + (r * prm.pitch + s) * kRowBytes, prm.group_pixels * kRowBytes);
        const uint64_t filter = sm90::swizzled_descriptor<kRowBytes>(weight);
#pragma unroll
        for (int k = 0; k < kRowBytes / 32; ++k)
          sm90::wgmma<T, kPixels>(acc, filter + k * 2, pixels + k * 2, (r | s | k) != 0);
      }
    sm90::wgmma_commit();
    if (thread == 0 && storing >= 0) {  // meanwhile the previous output has left its box
      sm90::tma_store_wait_read<0>();
      sm90::mbarrier_arrive(empty + storing * 8);
    }
    __syncwarp();
    sm90::wgmma_wait<0>();
    sm90::named_barrier_sync(1 + group, 128);  // nobody reads the box any more

    constexpr int kPooledBytes = (kPixels / 16 + 1) / 2 * 8 * 128;
    if (prm.residual_bytes) {
      const uint32_t barrier = residual_full + group * 8;
      if (thread == 0)
        load_halo_residual<T>(&maps.z, box, kPixels * 128, barrier, prm.residual_bytes, channel,
                              at.q, at.p, at.n);
      __syncwarp();
      sm90::mbarrier_wait(barrier, use & 1);
    }
    if (prm.pool)
      stage_pooled<T, kPixels>(acc, bias0, bias1, prm.relu, box, thread);
    else
      sm90::store_transposed<T, kPixels>(acc, bias0, bias1, prm.relu, box, thread,
                                         prm.residual_bytes != 0);
    sm90::fence_proxy_async();
    sm90::named_barrier_sync(1 + group, 128);
    if (thread == 0) {
      const int half = prm.pool;
      store_halo_tile<T>(&maps.y, box, prm.pool ? kPooledBytes : kPixels * 128, channel, prm.k,
                         at.q >> half, at.p >> half, at.n);
      sm90::tma_store_commit();
    }
    __syncwarp();
    storing = slot;
  }
  if (thread == 0) sm90::tma_store_wait<0>();
}

template <class T, int kPixels, int kRowBytes>
cudaError_t launch(const ConvGroup& g, cudaStream_t stream) {
  HaloParams prm = halo_params(g);
  prm.box_slot = std::max(prm.box_slot, plan::align_up(int64_t{kPixels} * 64 * sizeof(T)));
  const plan::HaloTile& tile = g.plan.halo;
  if (g.params.residual) prm.residual_bytes = tile.stored_width() * tile.rows * 64 * sizeof(T);
  HaloMaps maps;
  const cudaError_t error = halo_maps(g, tile.rows, &maps);
  if (error != cudaSuccess) return error;
  return launch_kernel<conv2d_halo_res_kernel<T, kPixels, kRowBytes>>(
      {g.plan.grid, g.plan.shared_bytes, 1, g.params.early_start}, stream, maps, prm);
}

template <class T, int kPixels>
cudaError_t dispatch(const ConvGroup& g, cudaStream_t stream) {
  switch (g.plan.instance->row_bytes) {
    case 128: return launch<T, kPixels, 128>(g, stream);
    case 64: return launch<T, kPixels, 64>(g, stream);
    case 32: return launch<T, kPixels, 32>(g, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch_conv2d_halo_res(const ConvGroup& group, cudaStream_t stream) {
  return dispatch_type(group.params.problem.dtype, [&](auto zero) {
    using T = decltype(zero);
    return group.plan.instance->pixels == 224 ? dispatch<T, 224>(group, stream)
                                              : dispatch<T, 112>(group, stream);
  });
}

}  // namespace cnnkernels
