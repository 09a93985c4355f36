// Stride-1 convolution of many channels, bias, residual, ReLU, 2x2 max-pool: 128 output channels x
// N output pixels, or 64 channels x two tiles of N pixels with a box each. The input box of a tile
// (plan::HaloTile) is loaded once per chunk of input channels and every tap multiplies it from a
// shifted start address; the weights stream through a ring, one tap of one chunk a stage.
// Persistent blocks walk the tiles, channels first; warp 0 fetches, each of two consumer warpgroups
// multiplies 64 channels x N pixels, adds bias and ReLU, stages and stores by TMA. Shared memory:
// two boxes (pairs of boxes), weight stages, a staging buffer per warpgroup, barriers. Against
// im2col the input crosses L2 -> shared memory once instead of R x S times: less power, higher
// clocks.
#include "conv2d/conv2d_halo.cuh"

namespace cnnkernels {
namespace {

constexpr int kBoxes = 2;

template <class T, int kChannels, int kPixels, int kRowBytes>
__global__ void __launch_bounds__(384, 1)
    conv2d_halo_stream_kernel(const __grid_constant__ HaloMaps maps, const HaloParams prm,
                              const int staged_bytes) {
  constexpr int kWeightBytes = kChannels * kRowBytes;  // one tap of one chunk
  constexpr int kParts = kChannels == 64 ? 2 : 1;      // pixel tiles, one per warpgroup or one
  constexpr int kPart = plan::halo_staged_pixels(kPixels);
  const uint32_t boxes = (sm90::dynamic_shared_memory() + 1023) & ~1023u;
  const uint32_t weights = boxes + kBoxes * kParts * prm.box_slot;
  const uint32_t staging = weights + prm.stages * kWeightBytes;
  const uint32_t box_full = staging + 2 * staged_bytes, box_empty = box_full + kBoxes * 8;
  const uint32_t full = box_empty + kBoxes * 8, empty = full + prm.stages * 8;
  const uint32_t residual_full = empty + prm.stages * 8;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kBoxes; ++i) {
      sm90::mbarrier_init(box_full + i * 8, 1);
      sm90::mbarrier_init(box_empty + i * 8, 8);  // every consumer warp
    }
    for (int i = 0; i < prm.stages; ++i) {
      sm90::mbarrier_init(full + i * 8, 1);
      sm90::mbarrier_init(empty + i * 8, 8);
    }
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
  const int tiles = prm.pixel_tiles * prm.channel_tiles;

  if (warp < 4) {
    sm90::setmaxnreg_dec<40>();
    if (warp != 0 || lane != 0) return;
    sm90::RingPosition box{0, 1}, stage{0, 1};
    for (int index = blockIdx.x; index < tiles; index += gridDim.x) {
      const int channel = index % prm.channel_tiles * kChannels;
      for (int chunk = 0; chunk < prm.chunks; ++chunk) {
        const int c = chunk * prm.chunk_channels;
        sm90::mbarrier_wait(box_empty + box.slot * 8, box.parity);
        sm90::mbarrier_arrive_expect_tx(box_full + box.slot * 8, kParts * prm.box_bytes);
#pragma unroll
        for (int part = 0; part < kParts; ++part) {  // a second one past the last image is zeros
          const HaloPosition at(index / prm.channel_tiles * kParts + part, prm);
          sm90::tma_load_4d(boxes + (box.slot * kParts + part) * prm.box_slot, &maps.x,
                            box_full + box.slot * 8, c, at.q - prm.pad_w, at.p - prm.pad_h, at.n);
        }
        box.advance(kBoxes);
        for (int tap = 0; tap < prm.r * prm.s; ++tap) {
          sm90::mbarrier_wait(empty + stage.slot * 8, stage.parity);
          sm90::mbarrier_arrive_expect_tx(full + stage.slot * 8, kWeightBytes);
          sm90::tma_load_3d(weights + stage.slot * kWeightBytes, &maps.w, full + stage.slot * 8, c,
                            tap, channel);
          stage.advance(prm.stages);
        }
      }
    }
    return;
  }

  sm90::setmaxnreg_inc<232>();
  const int group = warp / 4 - 1, thread = threadIdx.x % 128;
  const uint32_t staged = staging + group * staged_bytes;
  const T* bias = static_cast<const T*>(prm.bias);
  const uint32_t residual_barrier = residual_full + group * 8;
  uint32_t residual_parity = 0;
  float acc[kPixels / 2];
  sm90::RingPosition box, stage;
  for (int index = blockIdx.x; index < tiles; index += gridDim.x) {
    const int channel = index % prm.channel_tiles * kChannels + (kParts == 1 ? group * 64 : 0);
    const HaloPosition at(index / prm.channel_tiles * kParts + (kParts == 2 ? group : 0), prm);
    const int mine = channel + thread / 32 * 16 + lane / 4;
    const float bias0 = bias && mine < prm.k ? to_float(bias[mine]) : 0.f;
    const float bias1 = bias && mine + 8 < prm.k ? to_float(bias[mine + 8]) : 0.f;

    // The buffer is free once its store has read it; a residual arrives during the main loop.
    auto claim_buffer = [&](int p) {
      if (thread == 0) {
        sm90::tma_store_wait_read<0>();
        if (prm.residual_bytes)
          load_halo_residual<T>(&maps.z, staged, kPart * 128, residual_barrier, prm.residual_bytes,
                                channel, at.q, p, at.n);
      }
      __syncwarp();
    };
    auto await_buffer = [&] {
      if (prm.residual_bytes) {
        sm90::mbarrier_wait(residual_barrier, residual_parity);
        residual_parity ^= 1;
      } else {
        sm90::named_barrier_sync(1 + group, 128);
      }
    };
    auto store_buffer = [&](int plane_bytes, int q, int p) {
      sm90::fence_proxy_async();
      sm90::named_barrier_sync(1 + group, 128);
      if (thread == 0) {
        store_halo_tile<T>(&maps.y, staged, plane_bytes, channel, prm.k, q, p, at.n);
        sm90::tma_store_commit();
      }
      __syncwarp();
    };
    claim_buffer(at.p);

    // A stage (and a box, after its last tap) is given back when the next wgmma has been issued.
    int previous_stage = -1, previous_box = -1;
    for (int chunk = 0; chunk < prm.chunks; ++chunk) {
      sm90::mbarrier_wait(box_full + box.slot * 8, box.parity);
      const uint32_t source =
          boxes + (box.slot * kParts + (kParts == 2 ? group : 0)) * prm.box_slot;
      for (int r = 0; r < prm.r; ++r)
        for (int s = 0; s < prm.s; ++s) {
          sm90::mbarrier_wait(full + stage.slot * 8, stage.parity);
          const uint64_t pixels = sm90::window_descriptor<kRowBytes>(
              source + (r * prm.pitch + s) * kRowBytes, prm.group_pixels * kRowBytes);
          const uint64_t filter = sm90::swizzled_descriptor<kRowBytes>(
              weights + stage.slot * kWeightBytes + (kParts == 1 ? group * 64 * kRowBytes : 0));
          sm90::wgmma_fence();
#pragma unroll
          for (int k = 0; k < kRowBytes / 32; ++k)
            sm90::wgmma<T, kPixels>(acc, filter + k * 2, pixels + k * 2, (chunk | r | s | k) != 0);
          sm90::wgmma_commit();
          if (previous_stage >= 0) {
            sm90::wgmma_wait<1>();
            if (lane == 0) {
              sm90::mbarrier_arrive(empty + previous_stage * 8);
              if (previous_box >= 0) sm90::mbarrier_arrive(box_empty + previous_box * 8);
            }
            __syncwarp();
          }
          previous_box = -1;
          previous_stage = stage.slot;
          stage.advance(prm.stages);
        }
      previous_box = box.slot;
      box.advance(kBoxes);
    }
    sm90::wgmma_wait<0>();
    if (lane == 0) {
      sm90::mbarrier_arrive(empty + previous_stage * 8);
      sm90::mbarrier_arrive(box_empty + previous_box * 8);
    }
    __syncwarp();

    // Epilogue: 8-column tiles of 224 in two halves of 14 rows through one buffer, others at once.
    await_buffer();
    if (prm.pool) {
      stage_pooled<T, kPixels>(acc, bias0, bias1, prm.relu, staged, thread);
      store_buffer((kPixels / 16 + 1) / 2 * 8 * 128, at.q / 2, at.p / 2);
      continue;
    }
    const bool residual = prm.residual_bytes != 0;
    sm90::store_transposed<T, kPart>(acc, bias0, bias1, prm.relu, staged, thread, residual);
    if constexpr (kPart < kPixels)
      if (prm.whole_rows)
        sm90::store_transposed<T, kPart, kPart>(acc, bias0, bias1, prm.relu, staged + kPart * 128,
                                                thread, residual);
    store_buffer(kPart * 128, at.q, at.p);
    if constexpr (kPart < kPixels)
      if (!prm.whole_rows) {
        claim_buffer(at.p + kPart / 8);
        await_buffer();
        sm90::store_transposed<T, kPart, kPart>(acc, bias0, bias1, prm.relu, staged, thread,
                                                residual);
        store_buffer(kPart * 128, at.q, at.p + kPart / 8);
      }
  }
  if (thread == 0) sm90::tma_store_wait<0>();
}

template <class T, int kChannels, int kPixels, int kRowBytes>
cudaError_t launch(const ConvGroup& g, cudaStream_t stream) {
  const plan::HaloTile& tile = g.plan.halo;
  const bool halves = kPixels == 224 && !tile.whole_rows;
  const int staged = (halves ? 112 : kPixels) * 64 * int{sizeof(T)};
  const bool pool = g.params.problem.pool;
  const int rows = halves && !pool ? 14 : tile.rows;  // of one store
  HaloParams prm = halo_params(g);
  if (g.params.residual) prm.residual_bytes = tile.stored_width() * rows * 64 * int{sizeof(T)};
  HaloMaps maps;
  const cudaError_t error = halo_maps(g, rows, &maps);
  if (error != cudaSuccess) return error;
  return launch_kernel<conv2d_halo_stream_kernel<T, kChannels, kPixels, kRowBytes>>(
      {g.plan.grid, g.plan.shared_bytes, 1, g.params.early_start}, stream, maps, prm, staged);
}

template <class T>
cudaError_t dispatch(const ConvGroup& g, cudaStream_t stream) {
  const plan::Instance& i = *g.plan.instance;
  if (i.channels == 64) return launch<T, 64, 112, 128>(g, stream);
  if (i.row_bytes == 64)
    return i.pixels == 224 ? launch<T, 128, 224, 64>(g, stream)
                           : launch<T, 128, 208, 64>(g, stream);
  switch (i.pixels) {
    case 112: return launch<T, 128, 112, 128>(g, stream);
    case 208: return launch<T, 128, 208, 128>(g, stream);
    case 224: return launch<T, 128, 224, 128>(g, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch_conv2d_halo_stream(const ConvGroup& group, cudaStream_t stream) {
  return dispatch_type(group.params.problem.dtype,
                       [&](auto zero) { return dispatch<decltype(zero)>(group, stream); });
}

}  // namespace cnnkernels
