// Stem convolution on Hopper: C = 3, stride S, square filter of at most R2*S taps a side.
//   y[n, p, q, k] = relu(bias[k] + sum x[n, c, p*S - pad + r, q*S - pad + s] * w[k, c, r, s])
// Space-to-depth by the stride turns it into an R2 x R2 convolution of stride 1 over S*S*3
// channels, which is a transposed implicit GEMM: M = 64 output channels, N = NQ pixels of one
// output row. Producer warps read x in either layout, one space-to-depth row each, and write it
// swizzled into a ring of rows in shared memory; a tap is a shifted start address of the wgmma
// descriptor, so each row is written once and read R2 x R2 times. Each block keeps all the weights
// and walks bands of output rows; its two consumer warpgroups take the rows alternately, so that
// one stores (TMA) while the other multiplies. Without the pre-pass the input is read once: the
// DRAM floor is in reach.
#pragma once

#include <cuda.h>

#include "common/epilogue.cuh"
#include "common/sm90/mbarrier.cuh"
#include "common/sm90/tma.cuh"
#include "common/sm90/wgmma.cuh"
#include "conv2d/conv2d_stem_load.cuh"

namespace cnnkernels {

template <class T, int kStride, int kTaps, int kPixels, int kMTiles, bool kNhwc>
__global__ void __launch_bounds__(StemGeometry<kStride, kTaps, kPixels, kMTiles>::kThreads, 1)
    conv2d_stem_kernel(const __grid_constant__ CUtensorMap y_map, const StemKernelParams prm) {
  using G = StemGeometry<kStride, kTaps, kPixels, kMTiles>;
  extern __shared__ uint8_t shared_raw[];
  uint8_t* shared = shared_raw + (1024 - (sm90::shared_address(shared_raw) & 1023) & 1023);
  uint8_t* ring = shared;
  uint8_t* stage = ring + G::kRing * G::kRowBytes;
  uint8_t* weights = stage + 2 * kMTiles * G::kStageBytes;
  const uint32_t full = sm90::shared_address(weights + G::kWeightBytes);
  const uint32_t empty = full + G::kRing * 8;
  const uint32_t ring_address = sm90::shared_address(ring);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (G::kDepth % 16 != 0)  // the channels that pad a k16 step: written here once, zero ever after
    for (int i = threadIdx.x; i < G::kRing * G::kRowBytes / 16; i += G::kThreads)
      reinterpret_cast<uint4*>(ring)[i] = uint4{0, 0, 0, 0};
  sm90::fence_proxy_async();
  if (threadIdx.x == 0) {
    for (int i = 0; i < G::kRing; ++i) {
      sm90::mbarrier_init(full + i * 8, 1);   // the producer warp that wrote the row
      sm90::mbarrier_init(empty + i * 8, 8);  // every consumer warp
    }
    sm90::fence_mbarrier_init();
  }
  __syncthreads();

  if (warp < G::kProducerWarps) {
    sm90::setmaxnreg_dec<G::kProducerRegisters>();
    int counter = 0;  // rows of all tiles so far; row i lies in slot i % kRing
    for (int index = blockIdx.x; index < prm.tiles; index += gridDim.x) {
      const StemTile tile(prm, index, kPixels);
      const int rows_in = tile.rows + kTaps - 1;
      const int first =
          ((warp - counter) % G::kProducerWarps + G::kProducerWarps) % G::kProducerWarps;
      for (int i = first; i < rows_in; i += G::kProducerWarps) {
        const int slot = (counter + i) % G::kRing, round = (counter + i) / G::kRing;
        sm90::mbarrier_wait(empty + slot * 8, round & 1 ^ 1);
        stem_load_row<G, kStride, kNhwc>(prm, tile.n, tile.row0 + i, tile.q0,
                                         ring_address + slot * G::kRowBytes, lane);
        sm90::fence_proxy_async();
        __syncwarp();
        if (lane == 0) sm90::mbarrier_arrive(full + slot * 8);
      }
      counter += rows_in;
    }
    return;
  }

  sm90::setmaxnreg_inc<G::kConsumerRegisters>();
  const int group = warp / 4 - G::kProducerWarps / 4;  // consumer warpgroup, 0 or 1
  const int thread = threadIdx.x % 128;
  stem_load_weights<T, G, kStride, kTaps, kMTiles, kNhwc>(prm, weights, group * 128 + thread, 256);
  sm90::fence_proxy_async();
  sm90::named_barrier_sync(1, 256);  // both warpgroups: the weights are in place

  const uint32_t weight_address = sm90::shared_address(weights);
  const uint32_t stage_address = sm90::shared_address(stage) + group * kMTiles * G::kStageBytes;
  float bias[kMTiles][2];  // channels of this thread's accumulator rows
#pragma unroll
  for (int m = 0; m < kMTiles; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int k = m * 64 + thread / 32 * 16 + lane / 4 + i * 8;
      bias[m][i] = prm.bias && k < prm.k ? to_float(static_cast<const T*>(prm.bias)[k]) : 0.f;
    }

  int counter = 0;
  for (int index = blockIdx.x; index < prm.tiles; index += gridDim.x) {
    const StemTile tile(prm, index, kPixels);
    const int rows_in = tile.rows + kTaps - 1;
    int released = 0;  // rows of this tile this warpgroup has given back
    auto release_until = [&](int end) {
      for (; released < end; ++released)
        if (lane == 0) sm90::mbarrier_arrive(empty + (counter + released) % G::kRing * 8);
    };
    release_until(min(group, rows_in));  // warpgroup 1 never reads row 0
    for (int row = group; row < tile.rows; row += 2) {
      uint32_t row_address[kTaps];
#pragma unroll
      for (int r = 0; r < kTaps; ++r) {
        const int i = counter + row + r;
        sm90::mbarrier_wait(full + i % G::kRing * 8, i / G::kRing & 1);
        row_address[r] = ring_address + i % G::kRing * G::kRowBytes;
      }

      // Multiply: every tap and k16 step into the same accumulators.
      float acc[kMTiles][kPixels / 2];
      sm90::wgmma_fence();
#pragma unroll
      for (int tap = 0; tap < kTaps * kTaps; ++tap)
#pragma unroll
        for (int k16 = 0; k16 < G::kSteps16; ++k16) {
          const uint64_t pixels = sm90::swizzled_descriptor<G::kPixelBytes>(
              row_address[tap / kTaps] + tap % kTaps * G::kPixelBytes + k16 * 32);
#pragma unroll
          for (int m = 0; m < kMTiles; ++m) {
            const int step = m * G::kSteps + tap * G::kSteps16 + k16;
            sm90::wgmma<T, kPixels>(acc[m],
                                    sm90::swizzled_descriptor<32>(weight_address + step * 2048),
                                    pixels, tap + k16 > 0);
          }
        }
      sm90::wgmma_commit();
      sm90::wgmma_wait<0>();
      // The next row of this warpgroup is row + 2; after its last one every row goes back.
      release_until(row + 2 < tile.rows ? row + 2 : rows_in);

      // Epilogue: bias, ReLU, transpose into [pixel][64 channels] rows, one TMA store per m-tile.
      if (thread == 0) sm90::tma_store_wait_read<0>();
      sm90::named_barrier_sync(2 + group, 128);
#pragma unroll
      for (int m = 0; m < kMTiles; ++m)
        sm90::store_transposed<T, kPixels>(acc[m], bias[m][0], bias[m][1], prm.relu,
                                           stage_address + m * G::kStageBytes, thread);
      sm90::fence_proxy_async();
      sm90::named_barrier_sync(2 + group, 128);
      if (thread == 0) {
#pragma unroll
        for (int m = 0; m < kMTiles; ++m)
          if (m * 64 < prm.k)
            sm90::tma_store_3d(&y_map, stage_address + m * G::kStageBytes, m * 64, tile.q0,
                               tile.n * prm.p + tile.row0 + row);
        sm90::tma_store_commit();
      }
      __syncwarp();
    }
    release_until(rows_in);  // a band of one row leaves warpgroup 1 without work
    counter += rows_in;
  }
  if (thread == 0) sm90::tma_store_wait<0>();
}

}  // namespace cnnkernels
