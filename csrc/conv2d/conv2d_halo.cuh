// What the two halo kernels share: their parameters and the walk over tiles.
#pragma once

#include "common/epilogue.cuh"
#include "common/sm90/cluster.cuh"
#include "common/sm90/mbarrier.cuh"
#include "common/sm90/tma.cuh"
#include "common/sm90/wgmma.cuh"
#include "common/vec.cuh"
#include "conv2d/conv2d_maps.h"

namespace cnnkernels {

struct HaloParams {
  const void* bias;
  int k, r, s, pad_w, pad_h;
  int width, rows, pitch, group_pixels;  // plan::HaloTile
  int column_tiles, row_tiles, pixel_tiles, channel_tiles;
  int box_bytes, box_slot;  // of the input box, and of the buffer that holds it
  int chunks, chunk_channels, stages;
  int residual_bytes;  // of one load of the residual, 0 without
  bool whole_rows, relu, pool;
};

// Pixel tile `index`: image and first output column and row.
struct HaloPosition {
  int n, q, p;
  __device__ HaloPosition(int index, const HaloParams& prm)
      : n(index / prm.column_tiles / prm.row_tiles),
        q(index % prm.column_tiles * prm.width),
        p(index / prm.column_tiles % prm.row_tiles * prm.rows) {}
};

inline HaloParams halo_params(const ConvGroup& g) {
  const plan::ConvProblem& x = g.params.problem;
  const plan::HaloTile& t = g.plan.halo;
  const plan::Instance& i = *g.plan.instance;
  HaloParams prm{};
  prm.bias = g.params.bias;
  prm.k = x.k, prm.r = x.r, prm.s = x.s, prm.pad_w = x.pad_w, prm.pad_h = x.pad_h;
  prm.width = t.width, prm.rows = t.rows, prm.pitch = t.pitch, prm.group_pixels = t.group_pixels;
  prm.column_tiles = t.column_tiles, prm.row_tiles = t.row_tiles;
  prm.pixel_tiles = static_cast<int>(g.plan.pixel_tiles);
  prm.channel_tiles = g.plan.channel_tiles;
  prm.box_bytes = t.box_pixels() * i.row_bytes;
  prm.box_slot = plan::align_up(prm.box_bytes);
  prm.chunks = g.plan.chunks, prm.chunk_channels = i.row_bytes / x.element_bytes();
  prm.stages = g.plan.stages;
  prm.whole_rows = t.whole_rows, prm.relu = g.params.relu, prm.pool = x.pool;
  return prm;
}

// Input box, weights of one tap, output rows of a store, the same of the residual.
struct HaloMaps {
  CUtensorMap x, w, y, z;
};

inline cudaError_t halo_maps(const ConvGroup& g, int stored_rows, HaloMaps* maps) {
  const plan::ConvProblem& x = g.params.problem;
  const plan::HaloTile& t = g.plan.halo;
  const plan::Instance& i = *g.plan.instance;
  cudaError_t error = encode(
      &maps->x, plan::image_map(x, x.c, x.w, x.h, g.input_pitch, i.row_bytes, t.pitch, t.box_rows),
      x.dtype, g.params.input, true);
  if (error != cudaSuccess) return error;
  error = encode(&maps->w, plan::weight_map(x, i.row_bytes, i.channels), x.dtype, g.params.weight,
                 true);
  if (error != cudaSuccess) return error;
  const int pool = x.pool ? 2 : 1, q = x.q() / pool, p = x.p() / pool;
  error = encode(&maps->y,
                 plan::image_map(x, x.k, q, p, g.params.output_pitch, 128, t.stored_width() / pool,
                                 stored_rows / pool),
                 x.dtype, g.params.output, false);
  maps->z = maps->y;
  if (error == cudaSuccess && g.params.residual != nullptr)
    error =
        encode(&maps->z,
               plan::image_map(x, x.k, q, p, g.residual_pitch, 128, t.stored_width(), stored_rows),
               x.dtype, g.params.residual, false);
  return error;
}

// Stores one staged plane set of 64 channels from output pixel (q, p, n) on; one thread.
template <class T>
__device__ __forceinline__ void store_halo_tile(const CUtensorMap* y_map, uint32_t staged,
                                                int plane_bytes, int channel, int k, int q, int p,
                                                int n) {
#pragma unroll
  for (int plane = 0; plane < int(sizeof(T)) / 2; ++plane)
    if (channel + plane * 32 < k)
      sm90::tma_store_4d(y_map, staged + plane * plane_bytes, channel + plane * 32, q, p, n);
}

// The residual of that tile into its staging buffer; one thread. prefetch: into L2 only.
template <class T>
__device__ __forceinline__ void load_halo_residual(const CUtensorMap* z_map, uint32_t staged,
                                                   int plane_bytes, uint32_t barrier, int bytes,
                                                   int channel, int q, int p, int n) {
  sm90::mbarrier_arrive_expect_tx(barrier, bytes);
#pragma unroll
  for (int plane = 0; plane < int(sizeof(T)) / 2; ++plane)
    sm90::tma_load_4d(staged + plane * plane_bytes, z_map, barrier, channel + plane * 32, q, p, n);
}

// Pooled tile of 8 x kPixels / 8 pixels: 4 x kPixels / 16, staged like any other.
template <class T, int kPixels>
__device__ __forceinline__ void stage_pooled(const float (&acc)[kPixels / 2], float bias0,
                                             float bias1, bool relu, uint32_t staged, int thread) {
  constexpr int kRegisters = (kPixels / 16 + 1) / 2 * 4;
  float pooled[kRegisters];
  sm90::pool_2x2<kPixels>(acc, pooled);
  sm90::store_transposed<T, kRegisters * 2, 0, true>(pooled, bias0, bias1, relu, staged, thread);
}

}  // namespace cnnkernels
