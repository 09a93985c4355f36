// Stem convolutions (3 input channels): which instance takes a problem, its shared memory, and who
// owns which rows. Space-to-depth by the stride makes a stem a taps x taps convolution of stride 1
// over stride * stride * 3 channels ("depth"); kernels, launcher and CPU tests share this
// arithmetic.
#pragma once

#include <algorithm>
#include <cstdint>

#include "plan/conv_problem.h"
#include "plan/pool.h"

namespace cnnkernels {

// Element type of the input: the weight's, or one that is converted to it while it is read.
enum class StemInput { same, f32, u8 };

namespace plan {

constexpr int kStemChannels = 3;

struct StemProblem {
  int n = 0, h = 0, w = 0;  // input [N, 3, H, W]
  int k = 0, r = 0, s = 0;  // weight [K, 3, R, S]
  int stride = 1, pad_h = 0, pad_w = 0;
  Dtype dtype = Dtype::bf16;  // of weight, bias and output; f32 computes in tf32
  StemInput input = StemInput::same;
  bool pool = false;  // 3x3 max-pool of stride 2 behind the ReLU
  int pool_pad = 0;   // 0 or 1
  bool ceil_mode = false;

  int p() const { return (h + 2 * pad_h - r) / stride + 1; }
  int q() const { return (w + 2 * pad_w - s) / stride + 1; }
  int out_p() const { return pool ? int(pooled_size(p(), 3, 2, pool_pad, 1, ceil_mode)) : p(); }
  int out_q() const { return pool ? int(pooled_size(q(), 3, 2, pool_pad, 1, ceil_mode)) : q(); }
  int taps() const { return stride > 0 ? (std::max(r, s) + stride - 1) / stride : 0; }
  // Run on an H100: 16-bit types, converted by nobody, not pooled. The rest waits for a GPU.
  bool verified() const { return dtype != Dtype::f32 && input == StemInput::same && !pool; }
};

// Why no stem instance takes this problem, or nullptr.
inline const char* stem_why_not(const StemProblem& x) {
  if (x.dtype == Dtype::f64) return "stem kernels take fp16, bf16 and float32 (in TF32)";
  if (x.dtype == Dtype::f32 && x.input == StemInput::u8)
    return "stem kernels take uint8 images with fp16 and bf16 weights";
  if (x.stride != 1 && x.stride != 2 && x.stride != 4) return "stem kernels have stride 1, 2, 4";
  if (x.r < 1 || x.s < 1 || x.taps() > (x.stride == 2 ? 4 : 3))
    return "stem kernels take filters up to 3x3/1, 8x8/2 and 12x12/4";
  if (x.k < 1 || x.k % 8 != 0 || x.k > 128)
    return "stem kernels have at most 128 output channels, in 8s";
  if (x.h + 2 * x.pad_h < x.r || x.w + 2 * x.pad_w < x.s)
    return "the filter exceeds the padded input";
  if (!x.pool) return nullptr;
  if (x.stride == 1) return "stem kernels pool behind strides 2 and 4";
  if (x.pool_pad < 0 || x.pool_pad > 1) return "stem kernels pool 3x3/2 with padding 0 or 1";
  if (std::min(x.p(), x.q()) + 2 * x.pool_pad < 2 || x.out_p() < 1 || x.out_q() < 1)
    return "the pool's window exceeds the convolution's output";
  return nullptr;
}

// Compile-time geometry of an instance. In shared memory: a ring of space-to-depth rows, staged
// output, (pool) the odd rows' hand-over, all the weights of its output channels, barriers.
struct StemShape {
  int element_bytes = 2;  // of the operands
  int stride = 1, taps = 3;
  int pixels = 112;  // output columns of a row: wgmma's N
  int m_tiles = 1;   // of 64 output channels, kept by one block
  bool pool = false;

  // Eight producer warps where the accumulators leave them registers: gathering is what limits.
  constexpr int producer_warps() const { return pixels * m_tiles <= 112 ? 8 : 4; }
  constexpr int threads() const { return 32 * producer_warps() + 256; }  // + 2 consumer warpgroups
  constexpr int producer_registers() const { return producer_warps() == 8 ? 128 : 152; }
  constexpr int consumer_registers() const { return producer_warps() == 8 ? 128 : 176; }

  // A wgmma step takes 32 bytes of depth per pixel. A pixel's bytes lie in one row of the swizzle,
  // or (48 channels of tf32) in several planes of such rows.
  constexpr int depth() const { return stride * stride * kStemChannels; }
  constexpr int step_depth() const { return 32 / element_bytes; }
  constexpr int tap_steps() const { return (depth() + step_depth() - 1) / step_depth(); }
  constexpr int pixel_bytes() const {  // = the swizzle's span
    return tap_steps() == 1 ? 32 : element_bytes == 2 ? 128 : 64;
  }
  constexpr int plane_steps() const { return pixel_bytes() / 32; }
  constexpr int planes() const { return (tap_steps() + plane_steps() - 1) / plane_steps(); }
  constexpr int row_pixels() const { return pixels + taps - 1; }
  constexpr int plane_bytes() const { return (row_pixels() * pixel_bytes() + 1023) / 1024 * 1024; }
  constexpr int row_bytes() const { return planes() * plane_bytes(); }
  constexpr int steps() const { return taps * taps * tap_steps(); }
  constexpr int weight_bytes() const { return m_tiles * steps() * 64 * 32; }

  // One m-tile of one output row: [pixel][64 channels], for 32-bit types two halves of 32 channels.
  constexpr int stage_pixels() const { return pool ? (pixels / 2 + 7) / 8 * 8 : pixels; }
  constexpr int stage_bytes() const { return stage_pixels() * 64 * element_bytes; }
  // Both warpgroups store rows, or (pool) the one that owns the even rows.
  constexpr int stage_total() const { return (pool ? 1 : 2) * m_tiles * stage_bytes(); }
  constexpr int handed_words() const { return pool ? pixels / 8 * (element_bytes / 2) : 0; }
  constexpr int handed_bytes() const { return handed_words() * 128 * 4; }
  constexpr int fixed_bytes() const {
    return 1024 + weight_bytes() + stage_total() + handed_bytes() + 512;
  }
  constexpr int ring() const {  // rows; 16 keep two or more per producer warp
    const int fit = (227 * 1024 - fixed_bytes()) / row_bytes();
    return fit > 16 ? 16 : fit;
  }
  // Warps that gather, each a row in turn. With more of them than rows in the ring one could wait
  // for a slot's next round but one, and take the parity of the last for it.
  constexpr int gatherers() const { return std::min(producer_warps(), ring()); }
  constexpr int shared_bytes() const { return fixed_bytes() + ring() * row_bytes(); }

  // Where in a row of the ring 16-byte chunk `chunk` of a pixel's depth lies: what TMA's swizzle
  // would do. Rows start at multiples of 1024 bytes, so offsets stand for addresses.
  constexpr int chunk_offset(int pixel, int chunk) const {
    const int per_pixel = pixel_bytes() / 16;
    const int at = chunk / per_pixel * plane_bytes() + pixel * pixel_bytes();
    return at + ((chunk % per_pixel ^ (at >> 7 & (per_pixel - 1))) << 4);
  }
  // Where wgmma's pixel operand of a tap's column and step starts.
  constexpr int operand_offset(int tap_column, int step) const {
    return step / plane_steps() * plane_bytes() + tap_column * pixel_bytes() +
           step % plane_steps() * 32;
  }
  constexpr bool valid() const {
    return ring() >= taps + 2 && pixels % 8 == 0 && pixels <= 256 && row_bytes() > 0;
  }
};

// The instance for a problem that stem_why_not() lets pass. More than 64 output channels: the
// verified kernels keep two m-tiles per block, the others give each block one of them.
inline StemShape stem_shape(const StemProblem& x) {
  StemShape s;
  s.element_bytes = x.dtype == Dtype::f32 ? 4 : 2;
  s.stride = x.stride;
  s.taps = x.stride == 2 ? 4 : 3;
  s.m_tiles = x.k > 64 && x.verified() ? 2 : 1;
  s.pixels = x.stride == 4 ? 56 : x.stride == 1 && s.m_tiles == 1 ? 224 : 112;
  s.pool = x.pool;
  return s;
}

// Which input element depth channel `depth` of a tap is: the order in which a producer reads it, so
// that it moves whole words. NHWC: (dy, dx, c); NCHW: (dy, c, dx).
struct StemDepth {
  int c, dy, dx;
  CNNKERNELS_HD constexpr StemDepth(int depth, int stride, bool nhwc)
      : c(nhwc ? depth % 3 : depth / stride % 3),
        dy(depth / 3 / stride),
        dx(nhwc ? depth / 3 % stride : depth % stride) {}
};

// How a launch cuts its output. "Output" is the pooled one where there is a pool.
struct StemTiling {
  int p = 0, q = 0;  // the convolution's output
  int out_p = 0;
  int pool_pad = 0;
  int segments = 0;        // column segments of an output row
  int columns = 0;         // output columns of a segment
  int band_rows = 0;       // output rows of a band
  int bands = 0;           // per image and segment
  int tiles = 0;           // images * segments * bands
  int channel_blocks = 1;  // blocks that share a tile, each with its output channels
};

inline StemTiling stem_tiling(const StemProblem& x, const StemShape& shape, int sms) {
  StemTiling t;
  t.p = x.p(), t.q = x.q(), t.out_p = x.out_p(), t.pool_pad = x.pool_pad;
  t.columns = shape.pixels;
  if (x.pool)  // complete windows of a segment; one that holds the whole row clips at its ends
    t.columns =
        x.q() <= shape.pixels && x.out_q() <= shape.pixels / 2 ? x.out_q() : (shape.pixels - 1) / 2;
  t.segments = (x.out_q() + t.columns - 1) / t.columns;
  t.channel_blocks = (x.k + 64 * shape.m_tiles - 1) / (64 * shape.m_tiles);

  // Bands: as tall as possible (each reads taps - 1 rows again, and with a pool computes one row
  // again) while every multiprocessor has work and the last wave is nearly full; at 4 or fewer
  // waves the number of bands decides, not their height.
  const int workers = std::max(1, sms / t.channel_blocks);
  const int64_t columns = int64_t{x.n} * t.segments;
  double best = 1e30;
  for (int bands = 1; bands <= t.out_p; ++bands) {
    const int rows = (t.out_p + bands - 1) / bands;
    if ((t.out_p + rows - 1) / rows != bands) continue;
    const int64_t waves = (columns * bands + workers - 1) / workers;
    const int computed = x.pool ? 2 * rows + 1 : rows;
    const double cost = static_cast<double>(waves) * (computed + 0.25 * (shape.taps - 1) + 1);
    if (cost < best) best = cost, t.band_rows = rows, t.bands = bands;
  }
  t.tiles = static_cast<int>(columns * t.bands);
  return t;
}

// Blocks of a launch: each keeps the weights of one channel block.
inline int stem_grid(const StemTiling& t, int sms) {
  return std::min(t.tiles, std::max(1, sms / t.channel_blocks)) * t.channel_blocks;
}

// One unit of work: output rows [row0, row0 + rows) of image n, columns from q0.
struct StemTile {
  int n, q0, row0, rows;

  CNNKERNELS_HD StemTile(const StemTiling& t, int index, int pixels) {
    const int band = index % t.bands;
    const int rest = index / t.bands;
    q0 = rest % t.segments * pixels;
    n = rest / t.segments;
    row0 = band * t.band_rows;
    rows = t.band_rows < t.p - row0 ? t.band_rows : t.p - row0;
  }
};

// The same with a pool: pooled rows [out_row, out_row + out_rows), pooled columns from out_col. Row
// t = 0 … 2 out_rows of its windows is the convolution's row 2 out_row - pad + t, where that
// exists; those that do are [row0, row0 + rows), of which row0 is t = lead. Pooled column c of the
// segment takes the segment's columns 2c, 2c + 1, 2c + 2, or (left) 2c - 1, 2c, 2c + 1, below
// `limit`.
struct StemPoolTile {
  int n, q0, row0, rows;
  int out_row, out_rows, out_col, lead, limit;
  bool left;

  CNNKERNELS_HD StemPoolTile(const StemTiling& t, int index, int pixels) {
    const int band = index % t.bands;
    const int rest = index / t.bands;
    out_col = rest % t.segments * t.columns;
    n = rest / t.segments;
    out_row = band * t.band_rows;
    out_rows = t.band_rows < t.out_p - out_row ? t.band_rows : t.out_p - out_row;
    const int first = 2 * out_row - t.pool_pad, end = first + 2 * out_rows + 1;
    row0 = first > 0 ? first : 0;
    rows = (end < t.p ? end : t.p) - row0;
    lead = row0 - first;
    left = 2 * out_col < t.pool_pad;
    q0 = left ? 0 : 2 * out_col - t.pool_pad;
    limit = t.q - q0 < pixels ? t.q - q0 : pixels;
  }
};

}  // namespace plan
}  // namespace cnnkernels
