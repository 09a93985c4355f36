// Output tiles of the implicit-GEMM kernels: a ring of staging buffers per consumer warpgroup,
// filled from the accumulators, with the residual added where it has been loaded, stored by TMA.
#pragma once

#include "conv2d/conv2d_igemm.cuh"

namespace cnnkernels {

// The layout whose staging buffers hold plan::staged_pixels.
template <class T, int kChannels, int kPixels>
using StagedLayout = IgemmLayout<T, kChannels, kPixels, plan::staged_pixels(kPixels, sizeof(T))>;

// The residual of 64 channels x kStaged pixels into a staging buffer; one thread.
template <class T, int kStaged>
__device__ __forceinline__ void fetch_residual(const CUtensorMap* z_map, uint32_t to,
                                               uint32_t barrier, int channel, int pixel) {
  sm90::mbarrier_arrive_expect_tx(barrier, kStaged * 64 * sizeof(T));
#pragma unroll
  for (int plane = 0; plane < int(sizeof(T)) / 2; ++plane)
    sm90::tma_load_2d(to + plane * kStaged * 128, z_map, barrier, channel + plane * 32, pixel);
}

// Stores a staging buffer: 64 channels x kStaged pixels, TMA clips what lies outside. Channels from
// prm.split on belong to the second output, whose box may start before its channel 0. One thread.
template <class T, int kStaged>
__device__ __forceinline__ void store_staged(const IgemmMaps& maps, uint32_t staged, int channel,
                                             int pixel, const IgemmParams& prm) {
  constexpr int kPlane = 128 / sizeof(T);  // channels of a plane
  if (pixel >= prm.pixels) return;
#pragma unroll
  for (int plane = 0; plane < int(sizeof(T)) / 2; ++plane) {
    const int c = channel + plane * kPlane;
    const uint32_t from = staged + plane * kStaged * 128;
    if (c < prm.split) sm90::tma_store_2d(&maps.y, from, c, pixel);
    if (prm.split < prm.k && c < prm.k && c + kPlane > prm.split)
      sm90::tma_store_2d(&maps.y2, from, c - prm.split, pixel);
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

// What a thread adds to its two rows of accumulators, 64 channels from `channel` on.
template <class T>
struct ChannelBias {
  float low, high;
  __device__ __forceinline__ ChannelBias(const IgemmParams& prm, int channel, int thread) {
    const T* bias = static_cast<const T*>(prm.bias);
    const int mine = channel + thread / 32 * 16 + thread % 32 / 4;
    low = bias && mine < prm.k ? to_float(bias[mine]) : 0.f;
    high = bias && mine + 8 < prm.k ? to_float(bias[mine + 8]) : 0.f;
  }
};

// A consumer warpgroup's staging buffers.
template <class T, int kChannels, int kPixels>
struct OutputRing {
  using L = StagedLayout<T, kChannels, kPixels>;
  const IgemmMaps& maps;
  const IgemmParams& prm;
  const L& shared;
  const int group, thread;  // warpgroup 0 or 1, thread of 128
  sm90::RingPosition buffer;
  int unreleased = -1;  // residual buffer whose store may still read it

  // Output channels [channel, channel + 64) of pixels [pixel, pixel + kPixels), kStaged at a time.
  template <int kFirst = 0>
  __device__ __forceinline__ void store(const float (&acc)[kPixels / 2], int channel, int pixel,
                                        const ChannelBias<T>& bias) {
    const int barrier = (group * prm.buffers + buffer.slot) * 8;
    const uint32_t staged = shared.buffer(group, buffer.slot, prm);
    if (prm.residual)
      sm90::mbarrier_wait(shared.residual_full + barrier, buffer.parity);
    else if (thread == 0)
      wait_for_buffer(prm.buffers);
    __syncwarp();
    sm90::named_barrier_sync(1 + group, 128);
    sm90::store_transposed<T, L::kStaged, kFirst>(acc, bias.low, bias.high, prm.relu, staged,
                                                  thread, prm.residual);
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
      store<kFirst + L::kStaged>(acc, channel, pixel, bias);
  }
};

}  // namespace cnnkernels
