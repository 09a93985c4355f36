// What the implicit-GEMM kernels share: parameters, shared memory, the operands' producer and the
// multiplication. A tile is 64 or 128 output channels (wgmma's M) x N output pixels; a step of
// K is 128 bytes of input channels at one filter tap. A second convolution into the same sums (a
// projection shortcut) is a second segment of steps with maps of its own.
#pragma once

#include "common/epilogue.cuh"
#include "common/sm90/cluster.cuh"
#include "common/sm90/mbarrier.cuh"
#include "common/sm90/tma.cuh"
#include "common/sm90/wgmma.cuh"
#include "common/vec.cuh"
#include "conv2d/conv2d_maps.h"
#include "plan/conv_walk.h"

namespace cnnkernels {

struct IgemmSegment {
  int c, s, chunks, steps;  // input channels, filter width, chunks of a tap, taps x chunks
  int stride_w, stride_h, pad_w, pad_h, dilation_w, dilation_h;
  bool im2col;  // or a plain matrix: 1x1, stride 1
};

struct IgemmParams {
  const void* bias;
  int pixels, k, q, p;          // N * P * Q, output channels, output size
  IgemmSegment main, shortcut;  // shortcut.steps == 0: none
  int channel_tiles, tiles, stages, buffers;
  int split;  // channels of the first output; k where there is only one
  bool residual, relu;
};

// Input and weights, output and residual, the second output, the shortcut's input and weights.
struct IgemmMaps {
  CUtensorMap x, w, y, z, y2, x2, w2;
};

// Shared memory of an instance, from a 1024-byte boundary on. kStaged: pixels of a staging buffer.
template <class T, int kChannels, int kPixels, int kStagedPixels>
struct IgemmLayout {
  static constexpr int kParts = kChannels == 64 ? 2 : 1;  // pixel groups, one per warpgroup or one
  static constexpr int kPartBytes = kPixels * 128;
  static constexpr int kWeightBytes = kChannels * 128;
  static constexpr int kStageBytes = kParts * kPartBytes + kWeightBytes;
  static constexpr int kStaged = kStagedPixels;
  static constexpr int kStagedBytes = kStaged * 64 * sizeof(T);
  uint32_t stages, buffers, full, empty, residual_full, residual_empty;

  __device__ IgemmLayout(uint32_t raw, const IgemmParams& prm) {
    stages = (raw + 1023) & ~1023u;
    buffers = stages + prm.stages * kStageBytes;
    full = buffers + 2 * prm.buffers * kStagedBytes;
    empty = full + prm.stages * 8;
    residual_full = empty + prm.stages * 8;
    residual_empty = residual_full + 2 * prm.buffers * 8;
  }
  __device__ uint32_t pixels(int stage, int part) const {
    return stages + stage * kStageBytes + part * kPartBytes;
  }
  __device__ uint32_t weights(int stage) const {
    return stages + stage * kStageBytes + kParts * kPartBytes;
  }
  __device__ uint32_t buffer(int group, int slot, const IgemmParams& prm) const {
    return buffers + (group * prm.buffers + slot) * kStagedBytes;
  }
  // One thread; the block has to synchronise afterwards.
  // readers: consumer warps that read a stage.
  __device__ void initialise(const IgemmMaps& maps, const IgemmParams& prm, int readers) const {
    for (int i = 0; i < prm.stages; ++i) {
      sm90::mbarrier_init(full + i * 8, 1);
      sm90::mbarrier_init(empty + i * 8, readers);
    }
    for (int i = 0; i < 2 * prm.buffers; ++i) {
      sm90::mbarrier_init(residual_full + i * 8, 1);
      sm90::mbarrier_init(residual_empty + i * 8, 1);
    }
    sm90::fence_mbarrier_init();
    sm90::fence_proxy_async();
    sm90::prefetch_tensor_map(&maps.x);
    sm90::prefetch_tensor_map(&maps.w);
    sm90::prefetch_tensor_map(&maps.y);
  }
};

// Tile `index`, channels first: its first output channel and first output pixel.
template <int kChannels, int kPixels>
struct IgemmTile {
  int channel, pixel;
  __device__ IgemmTile(int index, const IgemmParams& prm)
      : channel(index % prm.channel_tiles * kChannels),
        pixel(index / prm.channel_tiles * kPixels * (kChannels == 64 ? 2 : 1)) {}
};

// Fetches the steps `range` of one segment of a tile through the ring.
template <class T, int kChannels, int kPixels, int kStaged>
__device__ __forceinline__ void fetch_segment(
    const CUtensorMap* x_map, const CUtensorMap* w_map, const IgemmSegment& segment,
    plan::StepRange range, IgemmTile<kChannels, kPixels> tile, const IgemmParams& prm,
    const IgemmLayout<T, kChannels, kPixels, kStaged>& shared, sm90::RingPosition& at) {
  using L = IgemmLayout<T, kChannels, kPixels, kStaged>;
  constexpr int kChunk = 128 / sizeof(T);
  int w[L::kParts], h[L::kParts], n[L::kParts];  // input corner of each part's first pixel
#pragma unroll
  for (int part = 0; part < L::kParts; ++part) {
    const int m = tile.pixel + part * kPixels, row = m / prm.q;
    w[part] = m % prm.q * segment.stride_w - segment.pad_w;
    h[part] = row % prm.p * segment.stride_h - segment.pad_h;
    n[part] = row / prm.p;
  }
  plan::ConvStep step(range.first, segment.chunks, kChunk, segment.s);
#pragma unroll(4 / L::kParts)
  for (int i = range.first; i < range.last; ++i) {
    sm90::mbarrier_wait(shared.empty + at.slot * 8, at.parity);
    const uint32_t full = shared.full + at.slot * 8;
    sm90::mbarrier_arrive_expect_tx(full, L::kStageBytes);
#pragma unroll
    for (int part = 0; part < L::kParts; ++part) {
      const uint32_t to = shared.pixels(at.slot, part);
      if (segment.im2col)
        sm90::tma_load_im2col(to, x_map, full, step.c, w[part], h[part], n[part],
                              step.s * segment.dilation_w, step.r * segment.dilation_h);
      else
        sm90::tma_load_2d(to, x_map, full, step.c, tile.pixel + part * kPixels);
    }
    sm90::tma_load_3d(shared.weights(at.slot), w_map, full, step.c, step.tap, tile.channel);
    step.advance(segment.c, kChunk, segment.s);
    at.advance(prm.stages);
  }
}

// The same of a tile's steps `range`, both segments.
template <class T, int kChannels, int kPixels, int kStaged>
__device__ __forceinline__ void fetch_tile(
    const IgemmMaps& maps, plan::StepRange range, IgemmTile<kChannels, kPixels> tile,
    const IgemmParams& prm, const IgemmLayout<T, kChannels, kPixels, kStaged>& shared,
    sm90::RingPosition& at) {
  fetch_segment<T>(&maps.x, &maps.w, prm.main, plan::steps_inside(range, 0, prm.main.steps), tile,
                   prm, shared, at);
  if (range.last > prm.main.steps)
    fetch_segment<T>(&maps.x2, &maps.w2, prm.shortcut,
                     plan::steps_inside(range, prm.main.steps, prm.shortcut.steps), tile, prm,
                     shared, at);
}

// acc[i] = the sums of the ring's next `steps` stages: rows [64 i, 64 i + 64) of the weights from
// `row` on x pixel group `part`; one consumer warpgroup. One stage of operands behind: a wgmma has
// finished when the next one has been issued. all_issued() is called when the last one has been.
template <class T, int kBlocks, int kChannels, int kPixels, int kStaged, class Callback>
__device__ __forceinline__ void multiply(float (&acc)[kBlocks][kPixels / 2], int steps,
                                         const IgemmParams& prm,
                                         const IgemmLayout<T, kChannels, kPixels, kStaged>& shared,
                                         int part, int row, int lane, sm90::RingPosition& stage,
                                         const Callback& all_issued) {
  int previous = 0;
  for (int step = 0; step < steps; ++step) {
    sm90::mbarrier_wait(shared.full + stage.slot * 8, stage.parity);
    const uint64_t pixels = sm90::swizzled_descriptor<128>(shared.pixels(stage.slot, part));
    const uint64_t weights = sm90::swizzled_descriptor<128>(shared.weights(stage.slot) + row * 128);
    sm90::wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k)  // 32 bytes of channels each
#pragma unroll
      for (int i = 0; i < kBlocks; ++i)
        sm90::wgmma<T, kPixels>(acc[i], weights + i * (64 * 128 / 16) + k * 2, pixels + k * 2,
                                (step | k) != 0);
    sm90::wgmma_commit();
    if (step > 0) {
      sm90::wgmma_wait<1>();
      if (lane == 0) sm90::mbarrier_arrive(shared.empty + previous * 8);
      __syncwarp();
    }
    previous = stage.slot;
    stage.advance(prm.stages);
  }
  all_issued();
  sm90::wgmma_wait<0>();
  if (lane == 0) sm90::mbarrier_arrive(shared.empty + previous * 8);
  __syncwarp();
}

inline IgemmSegment igemm_segment(const plan::ConvProblem& x, int chunks) {
  return {x.c,     x.s,     chunks,       chunks * x.r * x.s, x.stride_w,    x.stride_h,
          x.pad_w, x.pad_h, x.dilation_w, x.dilation_h,       !x.pointwise()};
}

inline IgemmParams igemm_params(const ConvGroup& g) {
  const plan::ConvProblem& x = g.params.problem;
  IgemmParams prm{};
  prm.bias = g.params.bias;
  prm.pixels = static_cast<int>(x.pixels()), prm.k = x.k, prm.q = x.q(), prm.p = x.p();
  prm.main = igemm_segment(x, g.plan.chunks);
  if (x.shortcut_c) prm.shortcut = igemm_segment(x.shortcut(), g.plan.shortcut_chunks);
  prm.channel_tiles = g.plan.channel_tiles, prm.tiles = static_cast<int>(g.plan.tiles());
  prm.stages = g.plan.stages, prm.buffers = g.plan.buffers;
  prm.split = g.params.split ? g.params.split : x.k;
  prm.residual = g.params.residual != nullptr, prm.relu = g.params.relu;
  return prm;
}

// staged: pixels of a staging buffer.
inline cudaError_t igemm_maps(const ConvGroup& g, int staged, IgemmMaps* maps) {
  const ConvParams& params = g.params;
  const plan::ConvProblem& x = params.problem;
  const int chunk = 128 / x.element_bytes(), pixels = g.plan.instance->pixels;
  auto input = [&](const plan::ConvProblem& p, int64_t pitch) {
    return p.pointwise() ? plan::matrix_map(p, p.c, pitch, chunk, pixels)
                         : plan::im2col_map(p, pitch, 128, pixels);
  };
  auto output = [&](int channels, int64_t pitch) {
    return plan::matrix_map(x, channels, pitch, chunk, staged);
  };
  const int filters = g.plan.instance->channels;
  cudaError_t error = encode(&maps->x, input(x, g.input_pitch), x.dtype, params.input, true);
  auto add = [&](CUtensorMap* map, const plan::TensorMap& m, const void* base, bool operand) {
    if (error == cudaSuccess) error = encode(map, m, x.dtype, base, operand);
  };
  add(&maps->w, plan::weight_map(x, 128, filters), params.weight, true);
  add(&maps->y, output(params.split ? params.split : x.k, params.output_pitch), params.output,
      false);
  maps->z = maps->y2 = maps->y, maps->x2 = maps->x, maps->w2 = maps->w;  // where unused
  if (params.residual) add(&maps->z, output(x.k, g.residual_pitch), params.residual, false);
  if (params.split)
    add(&maps->y2, output(x.k - params.split, params.second_pitch), params.second_output, false);
  if (x.shortcut_c) {
    const plan::ConvProblem z = x.shortcut();
    add(&maps->x2, input(z, params.shortcut_pitch ? params.shortcut_pitch : z.c),
        params.shortcut_input, true);
    add(&maps->w2, plan::weight_map(z, 128, filters), params.shortcut_weight, true);
  }
  return error;
}

}  // namespace cnnkernels
