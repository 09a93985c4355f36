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
// With a 3x3/2 max-pool behind it the rows are pooled along their columns in registers; warpgroup 1
// has the middle rows of the windows and hands them to warpgroup 0, which stores pooled rows only.
#pragma once

#include <cuda.h>

#include "common/epilogue.cuh"
#include "common/sm90/mbarrier.cuh"
#include "common/sm90/tma.cuh"
#include "common/sm90/wgmma.cuh"
#include "conv2d/conv2d_stem_load.cuh"
#include "conv2d/conv2d_stem_pool.cuh"

namespace cnnkernels {

template <class G, class Reads>
__global__ void __launch_bounds__(G::kThreads, 1)
    conv2d_stem_kernel(const __grid_constant__ CUtensorMap y_map, const StemKernelParams prm) {
  using T = typename G::T;
  using Tile = std::conditional_t<G::kPool, plan::StemPoolTile, plan::StemTile>;
  constexpr int kPixels = G::kPixels, kTaps = G::kTaps, kMTiles = G::kMTiles;
  constexpr plan::StemShape kShape = G::kShape;
  extern __shared__ uint8_t shared_raw[];
  uint8_t* shared = shared_raw + (1024 - (sm90::shared_address(shared_raw) & 1023) & 1023);
  uint8_t* ring = shared;
  uint8_t* stage = ring + G::kRing * G::kRowBytes;
  uint8_t* weights = stage + kShape.stage_total();
  uint8_t* handed = weights + kShape.weight_bytes();
  const uint32_t full = sm90::shared_address(handed + kShape.handed_bytes());
  const uint32_t empty = full + G::kRing * 8;
  const uint32_t ring_address = sm90::shared_address(ring);
  const uint32_t handed_full = empty + G::kRing * 8, handed_empty = handed_full + 8;

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // The channels that pad a step: written here once, zero ever after.
  if (G::kDepth % kShape.step_depth() != 0)
    for (int i = threadIdx.x; i < G::kRing * G::kRowBytes / 16; i += G::kThreads)
      reinterpret_cast<uint4*>(ring)[i] = uint4{0, 0, 0, 0};
  sm90::fence_proxy_async();
  if (threadIdx.x == 0) {
    for (int i = 0; i < G::kRing; ++i) {
      sm90::mbarrier_init(full + i * 8, 1);   // the producer warp that wrote the row
      sm90::mbarrier_init(empty + i * 8, 8);  // every consumer warp
    }
    if (G::kPool) {
      sm90::mbarrier_init(handed_full, 4);   // every warp of warpgroup 1
      sm90::mbarrier_init(handed_empty, 4);  // and of warpgroup 0
    }
    sm90::fence_mbarrier_init();
  }
  __syncthreads();

  // Blocks that share tiles differ in their 64 output channels.
  const int blocks = Reads::kSplitsChannels ? prm.channel_blocks : 1;
  const int k0 = Reads::kSplitsChannels ? static_cast<int>(blockIdx.x) % blocks * 64 * kMTiles : 0;
  const int worker = blockIdx.x / blocks, workers = gridDim.x / blocks;

  if (warp < G::kProducerWarps) {
    sm90::setmaxnreg_dec<kShape.producer_registers()>();
    if (warp >= kShape.gatherers()) return;
    int counter = 0;  // rows of all tiles so far; row i lies in slot i % kRing
    for (int index = worker; index < prm.tiles; index += workers) {
      const Tile tile(prm, index, kPixels);
      const int rows_in = tile.rows + kTaps - 1;
      constexpr int kWarps = kShape.gatherers();
      const int first = ((warp - counter) % kWarps + kWarps) % kWarps;
      for (int i = first; i < rows_in; i += kWarps) {
        const int slot = (counter + i) % G::kRing, round = (counter + i) / G::kRing;
        sm90::mbarrier_wait(empty + slot * 8, round & 1 ^ 1);
        Reads::template row<G>(prm, tile.n, tile.row0 + i, tile.q0,
                               ring_address + slot * G::kRowBytes, lane);
        sm90::fence_proxy_async();
        __syncwarp();
        if (lane == 0) sm90::mbarrier_arrive(full + slot * 8);
      }
      counter += rows_in;
    }
    return;
  }

  sm90::setmaxnreg_inc<kShape.consumer_registers()>();
  const int group = warp / 4 - G::kProducerWarps / 4;  // consumer warpgroup, 0 or 1
  const int thread = threadIdx.x % 128;
  stem_load_weights<G>(prm, Reads::nhwc(prm), k0, weights, group * 128 + thread, 256);
  sm90::fence_proxy_async();
  sm90::named_barrier_sync(1, 256);  // both warpgroups: the weights are in place

  const uint32_t weight_address = sm90::shared_address(weights);
  const uint32_t stage_address =
      sm90::shared_address(stage) + (G::kPool ? 0 : group * kMTiles * G::kStageBytes);
  float bias[kMTiles][2];  // channels of this thread's accumulator rows
#pragma unroll
  for (int m = 0; m < kMTiles; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int k = k0 + m * 64 + thread / 32 * 16 + lane / 4 + i * 8;
      bias[m][i] = prm.bias && k < prm.k ? to_float(static_cast<const T*>(prm.bias)[k]) : 0.f;
    }

  int counter = 0;
  int handed_rows = 0;  // from warpgroup 1 to 0 so far
  for (int index = worker; index < prm.tiles; index += workers) {
    const Tile tile(prm, index, kPixels);
    const int rows_in = tile.rows + kTaps - 1;
    auto wait_for = [&](int row) {  // until the producers have written it; its slot
      const int i = counter + row;
      sm90::mbarrier_wait(full + i % G::kRing * 8, i / G::kRing & 1);
      return i % G::kRing;
    };
    // Gives rows of this tile back. Those this warpgroup does not read are waited for as well: it
    // would otherwise take the previous round through the ring for the next one.
    int released = 0;
    auto release_until = [&](int end) {
      for (; released < end; ++released) {
        const int slot = wait_for(released);
        __syncwarp();  // no lane still waits when the slot may be filled again
        if (lane == 0) sm90::mbarrier_arrive(empty + slot * 8);
      }
    };
    // Every tap and step of row `row` into the accumulators.
    auto multiply = [&](int row, float (&acc)[kMTiles][kPixels / 2]) {
      uint32_t row_address[kTaps];
#pragma unroll
      for (int r = 0; r < kTaps; ++r)
        row_address[r] = ring_address + wait_for(row + r) * G::kRowBytes;
      sm90::wgmma_fence();
#pragma unroll
      for (int tap = 0; tap < kTaps * kTaps; ++tap)
#pragma unroll
        for (int s = 0; s < G::kTapSteps; ++s) {
          const uint64_t pixels = sm90::swizzled_descriptor<G::kPixelBytes>(
              row_address[tap / kTaps] + kShape.operand_offset(tap % kTaps, s));
#pragma unroll
          for (int m = 0; m < kMTiles; ++m) {
            const int step = m * G::kSteps + tap * G::kTapSteps + s;
            sm90::wgmma<T, kPixels>(acc[m],
                                    sm90::swizzled_descriptor<32>(weight_address + step * 2048),
                                    pixels, tap + s > 0);
          }
        }
      sm90::wgmma_commit();
      sm90::wgmma_wait<0>();
      // The next row of this warpgroup is row + 2; after its last one every row goes back.
      release_until(row + 2 < tile.rows ? row + 2 : rows_in);
    };
    // Output row `out` is staged: one thread stores it, an m-tile (32-bit types: half) at a time.
    auto store = [&](int column, int out) {
      sm90::fence_proxy_async();
      sm90::named_barrier_sync(2 + group, 128);
      if (thread == 0) {
        constexpr int kPieces = kMTiles * int(sizeof(T)) / 2;
        constexpr int kPieceChannels = 64 * kMTiles / kPieces;
#pragma unroll
        for (int i = 0; i < kPieces; ++i)
          if (k0 + i * kPieceChannels < prm.k)
            sm90::tma_store_3d(&y_map, stage_address + i * (kShape.stage_pixels() * 128),
                               k0 + i * kPieceChannels, column, out);
        sm90::tma_store_commit();
      }
      __syncwarp();
    };

    if constexpr (!G::kPool) {
      release_until(min(group, rows_in));  // warpgroup 1 never reads row 0
      for (int row = group; row < tile.rows; row += 2) {
        float acc[kMTiles][kPixels / 2];
        multiply(row, acc);
        // Epilogue: bias, ReLU, transpose into [pixel][64 channels] rows.
        if (thread == 0) sm90::tma_store_wait_read<0>();
        sm90::named_barrier_sync(2 + group, 128);
#pragma unroll
        for (int m = 0; m < kMTiles; ++m)
          sm90::store_transposed<T, kPixels>(acc[m], bias[m][0], bias[m][1], prm.relu,
                                             stage_address + m * G::kStageBytes, thread);
        store(tile.q0, tile.n * prm.p + tile.row0 + row);
      }
    } else {
      static_assert(kMTiles == 1);
      const uint32_t handed_address = sm90::shared_address(handed);
      auto exists = [&](int t) { return t >= tile.lead && t - tile.lead < tile.rows; };
      StemPooledRow<T, kPixels> previous;  // warpgroup 0: row t - 2
      previous.clear();
      for (int t = group; t <= 2 * tile.out_rows; t += 2) {
        StemPooledRow<T, kPixels> current;
        if (exists(t)) {
          release_until(t - tile.lead);
          float acc[1][kPixels / 2];
          multiply(t - tile.lead, acc);
          if (tile.left)
            current.template pool<true>(acc[0], bias[0][0], bias[0][1], prm.relu, tile.limit, lane);
          else
            current.template pool<false>(acc[0], bias[0][0], bias[0][1], prm.relu, tile.limit,
                                         lane);
        } else {
          current.clear();
        }
        if (group == 1) {
          if (!exists(t)) continue;
          sm90::mbarrier_wait(handed_empty, handed_rows++ & 1 ^ 1);
          current.hand_over(handed_address, thread);
          __syncwarp();
          if (lane == 0) sm90::mbarrier_arrive(handed_full);
          continue;
        }
        if (t > 0) {  // the window of rows t - 2, t - 1, t is complete
          if (exists(t - 1)) {
            sm90::mbarrier_wait(handed_full, handed_rows++ & 1);
            previous.take_max_of_handed(handed_address, thread);
            __syncwarp();
            if (lane == 0) sm90::mbarrier_arrive(handed_empty);
          }
          previous.take_max(current);
          if (thread == 0) sm90::tma_store_wait_read<0>();
          sm90::named_barrier_sync(2 + group, 128);
          previous.template stage<kShape.stage_pixels()>(stage_address, thread);
          store(tile.out_col, tile.n * prm.out_p + tile.out_row + t / 2 - 1);
        }
        previous = current;
      }
    }
    release_until(rows_in);  // the rows of a warpgroup without work in this tile
    counter += rows_in;
  }
  if (thread == 0) sm90::tma_store_wait<0>();
}

}  // namespace cnnkernels
