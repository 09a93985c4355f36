// Stem convolution on Hopper: its geometry, its parameters and what fills shared memory: the
// weights (once per block) and the input, one space-to-depth row per producer warp and turn.
#pragma once

#include <cstdint>

#include "common/vec.cuh"

namespace cnnkernels {

constexpr int kStemChannels = 3;

// Compile-time geometry of an instance.
template <int kStride, int kTaps, int kPixels, int kMTiles>
struct StemGeometry {
  // Eight producer warps where the accumulators leave them registers: gathering is what limits.
  static constexpr int kProducerWarps = kPixels * kMTiles <= 112 ? 8 : 4;
  static constexpr int kThreads = 32 * kProducerWarps + 256;  // + two consumer warpgroups
  static constexpr int kProducerRegisters = kProducerWarps == 8 ? 128 : 152;
  static constexpr int kConsumerRegisters = kProducerWarps == 8 ? 128 : 176;
  static constexpr int kDepth = kStride * kStride * kStemChannels;  // space-to-depth channels
  static constexpr int kSteps16 = (kDepth + 15) / 16;               // k16 steps per tap
  static constexpr int kPixelBytes = kDepth <= 16 ? 32 : 128;       // = the swizzle span
  static constexpr int kRowPixels = kPixels + kTaps - 1;
  static constexpr int kRowBytes = (kRowPixels * kPixelBytes + 1023) / 1024 * 1024;
  static constexpr int kSteps = kTaps * kTaps * kSteps16;
  static constexpr int kWeightBytes = kMTiles * kSteps * 64 * 32;
  static constexpr int kStageBytes = kPixels * 128;  // one m-tile of one output row
  static constexpr int kFixedBytes = 1024 + kWeightBytes + 2 * kMTiles * kStageBytes + 512;
  static constexpr int kFit = (227 * 1024 - kFixedBytes) / kRowBytes;
  static constexpr int kRing =
      kFit > 16 ? 16 : kFit;  // rows; 16 keep two or more per producer warp
  static constexpr int kSharedBytes = kFixedBytes + kRing * kRowBytes;
  static_assert(kRing >= kTaps + 2, "the ring must hold one output row's rows and more in flight");
  static_assert(kDepth <= 48 && kPixels % 8 == 0 && kPixels <= 256);
};

struct StemKernelParams {
  const void* x;
  const void* weight;
  const void* bias;
  int64_t x_stride[4];
  int weight_stride[4];
  int h, w, k, r, s, p, q, stride, pad_h, pad_w;
  int segments;   // of kPixels output columns
  int band_rows;  // output rows of a band
  int bands;      // bands per image column segment
  int tiles;      // images * segments * bands
  bool relu;
};

// One unit of work: output rows [row0, row0 + rows) of image n, columns from q0.
struct StemTile {
  int n, q0, row0, rows;

  __device__ StemTile(const StemKernelParams& prm, int index, int pixels) {
    const int band = index % prm.bands;
    const int rest = index / prm.bands;
    q0 = rest % prm.segments * pixels;
    n = rest / prm.segments;
    row0 = band * prm.band_rows;
    rows = min(prm.band_rows, prm.p - row0);
  }
};

// Which input element the space-to-depth channel `depth` of a tap is: the order in which a producer
// reads it, so that it moves whole 32-bit words. NHWC: (dy, dx, c); NCHW: (dy, c, dx).
template <int kStride, bool kNhwc>
struct StemDepth {
  int c, dy, dx;
  __device__ explicit StemDepth(int depth)
      : c(kNhwc ? depth % 3 : depth / kStride % 3),
        dy(depth / 3 / kStride),
        dx(kNhwc ? depth / 3 % kStride : depth % kStride) {}
};

// Copies the weights into shared memory as kMTiles x kSteps tiles of [64 rows][16 k], 32-byte rows,
// 32-byte swizzle. Four chunks of 8 elements are in flight per thread: this is latency, not work.
template <class T, class G, int kStride, int kTaps, int kMTiles, bool kNhwc>
__device__ void stem_load_weights(const StemKernelParams& prm, uint8_t* weights, int thread,
                                  int threads) {
  const T* weight = static_cast<const T*>(prm.weight);
  constexpr int kChunks = kMTiles * G::kSteps * 64 * 2;
  constexpr int kInFlight = 4;
#pragma unroll 1
  for (int first = thread; first < kChunks; first += threads * kInFlight) {
    Vec<T> v[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      const int chunk = first + u * threads;
      const int half = chunk & 1, row = chunk >> 1 & 63, tile = chunk >> 7;
      const int step = tile % G::kSteps, k = tile / G::kSteps * 64 + row;
      const int tap = step / G::kSteps16, depth0 = step % G::kSteps16 * 16 + half * 8;
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const StemDepth<kStride, kNhwc> at(depth0 + e);
        const int r = tap / kTaps * kStride + at.dy, s = tap % kTaps * kStride + at.dx;
        const bool inside =
            chunk < kChunks && depth0 + e < G::kDepth && k < prm.k && r < prm.r && s < prm.s;
        const int offset = k * prm.weight_stride[0] + at.c * prm.weight_stride[1] +
                           r * prm.weight_stride[2] + s * prm.weight_stride[3];
        v[u].e[e] = inside ? weight[offset] : from_float<T>(0.f);
      }
    }
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      const int chunk = first + u * threads;
      const int half = chunk & 1, row = chunk >> 1 & 63, tile = chunk >> 7;
      if (chunk < kChunks)
        v[u].store(reinterpret_cast<T*>(weights + tile * 2048 + row * 32 +
                                        ((half ^ (row >> 2 & 1)) << 4)));
    }
  }
}

// Elements [offset, offset + 2 kWords) of a row of `limit` 16-bit elements, zero outside the row.
// The row may start at an odd address, so aligned words are read (load) and shifted later (finish):
// all loads of a row are in flight before the first is used. An end word may reach one element past
// the row, never past its own aligned 4 bytes.
template <int kWords>
struct StemRun {
  uint32_t raw[kWords + 1];

  __device__ __forceinline__ void load(const uint16_t* row, int offset, int limit, bool inside) {
    const int odd = reinterpret_cast<uintptr_t>(row + offset) >> 1 & 1;
    const auto* aligned = reinterpret_cast<const uint32_t*>(row + offset - odd);
#pragma unroll
    for (int i = 0; i <= kWords; ++i) raw[i] = 0;
    if (!inside) return;
    if (offset >= 0 && offset + 2 * kWords <= limit) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) raw[i] = __ldg(aligned + i);
      if (odd) raw[kWords] = __ldg(aligned + kWords);
    } else {
#pragma unroll
      for (int i = 0; i <= kWords; ++i) {
        const int element = offset - odd + 2 * i;
        if (element >= -1 && element < limit) raw[i] = __ldg(aligned + i);
      }
    }
  }

  __device__ __forceinline__ void finish(const uint16_t* row, int offset, int limit,
                                         uint32_t* words) const {
    const int odd = reinterpret_cast<uintptr_t>(row + offset) >> 1 & 1;
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = __funnelshift_r(raw[i], raw[i + 1], odd * 16);
    if (offset >= 0 && offset + 2 * kWords <= limit) return;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const unsigned element = static_cast<unsigned>(offset + 2 * i);
      if (element >= static_cast<unsigned>(limit)) words[i] &= 0xffff0000u;
      if (element + 1 >= static_cast<unsigned>(limit)) words[i] &= 0x0000ffffu;
    }
  }
};

__device__ __forceinline__ void store_words(uint32_t address, uint32_t a, uint32_t b) {
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(address), "r"(a), "r"(b) : "memory");
}

// A producer warp writes one space-to-depth row: a lane takes one pixel (two for stride 1, whose
// pixels are odd numbers of elements), all its loads before its first store. Channels past the
// depth stay zero from the start of the kernel.
template <class G, int kStride, bool kNhwc>
__device__ __forceinline__ void stem_load_row(const StemKernelParams& prm, int n, int row_index,
                                              int q0, uint32_t row_address, int lane) {
  constexpr int kGroup = kStride == 1 ? 2 : 1;                    // pixels per lane and step
  constexpr int kRuns = kNhwc ? kStride : 3 * kStride;            // contiguous pieces of a pixel
  constexpr int kWords = kGroup * kStride * (kNhwc ? 3 : 1) / 2;  // per piece
  constexpr int kGroups = G::kRowPixels / kGroup;
  constexpr int kIterations = (kGroups + 31) / 32;
  constexpr int kBatch = kStride == 1 ? kIterations : kStride == 2 ? 2 : 1;  // steps in flight
  static_assert(G::kRowPixels % kGroup == 0);
  const auto* image = static_cast<const uint16_t*>(prm.x) + n * prm.x_stride[0];
  const int h0 = row_index * kStride - prm.pad_h;
  const int limit = kNhwc ? 3 * prm.w : prm.w;

  auto row_of = [&](int run) {
    const int h = h0 + (kNhwc ? run : run / 3);
    return image + h * prm.x_stride[2] + (kNhwc ? 0 : run % 3 * prm.x_stride[1]);
  };
#pragma unroll 1
  for (int batch = 0; batch < kIterations; batch += kBatch) {
    StemRun<kWords> runs[kBatch][kRuns];
#pragma unroll
    for (int it = 0; it < kBatch; ++it) {
      const int group = (batch + it) * 32 + lane;
      const int offset = ((q0 + group * kGroup) * kStride - prm.pad_w) * (kNhwc ? 3 : 1);
#pragma unroll
      for (int run = 0; run < kRuns; ++run) {
        const int h = h0 + (kNhwc ? run : run / 3);
        runs[it][run].load(row_of(run), offset, limit, h >= 0 && h < prm.h && group < kGroups);
      }
    }
#pragma unroll
    for (int it = 0; it < kBatch; ++it) {
      const int group = (batch + it) * 32 + lane;
      if (group >= kGroups) continue;
      const int offset = ((q0 + group * kGroup) * kStride - prm.pad_w) * (kNhwc ? 3 : 1);
      const uint32_t address = row_address + group * kGroup * G::kPixelBytes;
      // The swizzle XORs the 16-byte chunk's index with address bits 7.. (one bit for 32-byte
      // rows).
      const uint32_t flip = G::kPixelBytes == 32 ? address >> 7 & 1 : address >> 7 & 7;
      if constexpr (kStride == 1) {  // two pixels of three channels; both lie in one swizzle row
        uint32_t v[kRuns * kWords], a0, a1, b0, b1;
#pragma unroll
        for (int run = 0; run < kRuns; ++run)
          runs[it][run].finish(row_of(run), offset, limit, v + run * kWords);
        if constexpr (kNhwc) {
          a0 = v[0], a1 = v[1] & 0xffff, b0 = v[1] >> 16 | v[2] << 16, b1 = v[2] >> 16;
        } else {
          a0 = __byte_perm(v[0], v[1], 0x5410), a1 = v[2] & 0xffff;
          b0 = __byte_perm(v[0], v[1], 0x7632), b1 = v[2] >> 16;
        }
        store_words(address + (flip << 4), a0, a1);
        store_words(address + G::kPixelBytes + (flip << 4), b0, b1);
      } else {  // two words at a time, as they become ready
        uint32_t v[2];
#pragma unroll
        for (int run = 0; run < kRuns; ++run) {
          uint32_t piece[kWords];
          runs[it][run].finish(row_of(run), offset, limit, piece);
#pragma unroll
          for (int i = 0; i < kWords; ++i) {
            const int w = run * kWords + i;
            v[w % 2] = piece[i];
            if (w % 2 == 1)
              store_words(address + (((w / 4) ^ flip) << 4) + w / 2 % 2 * 8, v[0], v[1]);
          }
        }
      }
    }
  }
}

}  // namespace cnnkernels
