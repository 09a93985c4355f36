// Stem convolution on Hopper: what fills shared memory: the weights (once per block) and the input,
// one space-to-depth row per producer warp and turn.
#pragma once

#include <cstdint>
#include <type_traits>

#include "conv2d/conv2d_stem_run.cuh"
#include "plan/conv_stem.h"

namespace cnnkernels {

// Compile-time geometry of an instance; T is the operands' type (float computes in tf32).
template <class Element, int kStrideOf, int kTapsOf, int kPixelsOf, int kMTilesOf, bool kPoolOf>
struct StemGeometry {
  using T = Element;
  static constexpr plan::StemShape kShape{sizeof(T), kStrideOf, kTapsOf,
                                          kPixelsOf, kMTilesOf, kPoolOf};
  static_assert(kShape.valid(), "the ring must hold one output row's rows and more in flight");
  static constexpr int kStride = kStrideOf, kTaps = kTapsOf, kPixels = kPixelsOf;
  static constexpr int kMTiles = kMTilesOf;
  static constexpr bool kPool = kPoolOf;
  static constexpr int kProducerWarps = kShape.producer_warps();
  static constexpr int kThreads = kShape.threads();
  static constexpr int kDepth = kShape.depth();
  static constexpr int kTapSteps = kShape.tap_steps(), kSteps = kShape.steps();
  static constexpr int kPixelBytes = kShape.pixel_bytes();
  static constexpr int kPlaneBytes = kShape.plane_bytes(), kRowBytes = kShape.row_bytes();
  static constexpr int kRowPixels = kShape.row_pixels();
  static constexpr int kRing = kShape.ring();
  static constexpr int kStageBytes = kShape.stage_bytes();
};

struct StemKernelParams : plan::StemTiling {
  const void* x;
  const void* weight;
  const void* bias;
  int64_t x_stride[4];
  int weight_stride[4];
  int h, w, k, r, s, pad_h, pad_w;
  bool relu;
  StemInput input;  // x's type and layout, read by the instances that take any
  bool nhwc;
};

// Copies the weights of the channels from k0 on into shared memory as kMTiles x kSteps tiles of [64
// rows][32 bytes], 32-byte swizzle. Four chunks of 16 bytes are in flight per thread: this is
// latency, not work.
template <class G>
__device__ __forceinline__ void stem_load_weights(const StemKernelParams& prm, bool nhwc, int k0,
                                                  uint8_t* weights, int thread, int threads) {
  using T = typename G::T;
  const T* weight = static_cast<const T*>(prm.weight);
  constexpr int kChunks = G::kMTiles * G::kSteps * 64 * 2;
  constexpr int kInFlight = 4;
#pragma unroll 1
  for (int first = thread; first < kChunks; first += threads * kInFlight) {
    Vec<T> v[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      const int chunk = first + u * threads;
      const int half = chunk & 1, row = chunk >> 1 & 63, tile = chunk >> 7;
      const int step = tile % G::kSteps, k = k0 + tile / G::kSteps * 64 + row;
      const int tap = step / G::kTapSteps;
      const int depth0 = (step % G::kTapSteps * 2 + half) * kVecSize<T>;
#pragma unroll
      for (int e = 0; e < kVecSize<T>; ++e) {
        const plan::StemDepth at(depth0 + e, G::kStride, nhwc);
        const int r = tap / G::kTaps * G::kStride + at.dy, s = tap % G::kTaps * G::kStride + at.dx;
        const bool inside =
            chunk < kChunks && depth0 + e < G::kDepth && k < prm.k && r < prm.r && s < prm.s;
        const int offset = k * prm.weight_stride[0] + at.c * prm.weight_stride[1] +
                           r * prm.weight_stride[2] + s * prm.weight_stride[3];
        v[u].e[e] = stem_operand(inside ? weight[offset] : from_float<T>(0.f));
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

// A producer warp writes one space-to-depth row of x (elements of X): a lane takes one pixel (two
// for stride 1 in 16 bits, whose pixels are odd numbers of elements), all its loads before its
// first store. Depth channels past the last stay zero from the start of the kernel.
template <class G, class X, bool kNhwc>
__device__ __forceinline__ void stem_load_row(const StemKernelParams& prm, int n, int row_index,
                                              int q0, uint32_t row_address, int lane) {
  using T = typename G::T;
  constexpr int kStride = G::kStride;
  constexpr bool kWide = sizeof(T) == 4;
  constexpr int kGroup = kStride == 1 && !kWide ? 2 : 1;         // pixels per lane and step
  constexpr int kRuns = kNhwc ? kStride : 3 * kStride;           // contiguous pieces of a pixel
  constexpr int kElements = kGroup * kStride * (kNhwc ? 3 : 1);  // per piece
  constexpr int kWords = kElements * int(sizeof(T)) / 4;         // of the operand
  constexpr int kGroups = G::kRowPixels / kGroup;
  constexpr int kIterations = (kGroups + 31) / 32;
  constexpr int kBatch = kStride == 1   ? (kWide ? 4 : kIterations)
                         : kStride == 2 ? 2
                                        : 1;  // in flight
  // Floats of a whole 4 x 4 pixel and their addresses would not fit in the registers.
  constexpr int kPart = std::is_same_v<X, float> && kStride == 4 ? kRuns / 2 : kRuns;
  static_assert(G::kRowPixels % kGroup == 0 && (kPart == kRuns || kPart * kWords % 4 == 0));
  using Run = StemRun<X, T, kElements>;
  using Source = typename Run::Source;
  const auto* image = static_cast<const Source*>(prm.x) + n * prm.x_stride[0];
  const int h0 = row_index * kStride - prm.pad_h;
  const int limit = kNhwc ? 3 * prm.w : prm.w;

  auto row_of = [&](int run) {
    const int h = h0 + (kNhwc ? run : run / 3);
    return image + h * prm.x_stride[2] + (kNhwc ? 0 : run % 3 * prm.x_stride[1]);
  };
#pragma unroll 1
  for (int batch = 0; batch < kIterations; batch += kBatch) {
#pragma unroll 1
    for (int part = 0; part < kRuns; part += kPart) {
      Run runs[kBatch][kPart];
#pragma unroll
      for (int it = 0; it < kBatch; ++it) {
        const int group = (batch + it) * 32 + lane;
        const int offset = ((q0 + group * kGroup) * kStride - prm.pad_w) * (kNhwc ? 3 : 1);
#pragma unroll
        for (int run = 0; run < kPart; ++run) {
          const int h = h0 + (kNhwc ? part + run : (part + run) / 3);
          runs[it][run].load(row_of(part + run), offset, limit,
                             h >= 0 && h < prm.h && group < kGroups);
        }
      }
#pragma unroll
      for (int it = 0; it < kBatch; ++it) {
        const int group = (batch + it) * 32 + lane;
        if (group >= kGroups) continue;
        const int offset = ((q0 + group * kGroup) * kStride - prm.pad_w) * (kNhwc ? 3 : 1);
        const uint32_t address = row_address + group * kGroup * G::kPixelBytes;
        // The swizzle XORs the 16-byte chunk's index with address bits 7 and up.
        constexpr int kPixelChunks = G::kPixelBytes / 16;
        const uint32_t flip = address >> 7 & (kPixelChunks - 1);
        if constexpr (!kWide && kStride == 1) {  // two pixels of three channels, in one swizzle row
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
          sm90::store_words(address + (flip << 4), a0, a1);
          sm90::store_words(address + G::kPixelBytes + (flip << 4), b0, b1);
          continue;
        }
        uint32_t v[4] = {0, 0, 0, 0};  // stored 8 or (32-bit types) 16 bytes at a time
        const int chunk0 = part * kWords / 4;
#pragma unroll
        for (int run = 0; run < kPart; ++run) {
          uint32_t piece[kWords];
          runs[it][run].finish(row_of(part + run), offset, limit, piece);
#pragma unroll
          for (int i = 0; i < kWords; ++i) {
            const int w = run * kWords + i, chunk = chunk0 + w / 4;
            v[w % 4] = piece[i];
            const uint32_t to = address + chunk / kPixelChunks * G::kPlaneBytes +
                                ((chunk % kPixelChunks ^ flip) << 4);
            if (!kWide && w % 2 == 1) sm90::store_words(to + w / 2 % 2 * 8, v[w % 4 - 1], v[w % 4]);
            if (kWide && (w % 4 == 3 || w == G::kDepth - 1))
              sm90::store_words(to, v[0], v[1], v[2], v[3]);
          }
        }
      }
    }
  }
}

// How an instance reads x. Same: the operands' type, the layout known at compile time.
template <bool kNhwc>
struct StemReadsSame {
  static constexpr bool kSplitsChannels = false;  // a block has all output channels
  __device__ static bool nhwc(const StemKernelParams&) { return kNhwc; }
  template <class G>
  __device__ static __forceinline__ void row(const StemKernelParams& prm, int n, int row_index,
                                             int q0, uint32_t row_address, int lane) {
    stem_load_row<G, typename G::T, kNhwc>(prm, n, row_index, q0, row_address, lane);
  }
};

// Any: type and layout at run time, so that the consumers are compiled once.
struct StemReadsAny {
  static constexpr bool kSplitsChannels = true;
  __device__ static bool nhwc(const StemKernelParams& prm) { return prm.nhwc; }
  template <class G, class X>
  __device__ static __forceinline__ void typed(const StemKernelParams& prm, int n, int row_index,
                                               int q0, uint32_t row_address, int lane) {
    if (prm.nhwc)
      stem_load_row<G, X, true>(prm, n, row_index, q0, row_address, lane);
    else
      stem_load_row<G, X, false>(prm, n, row_index, q0, row_address, lane);
  }
  template <class G>
  __device__ static __forceinline__ void row(const StemKernelParams& prm, int n, int row_index,
                                             int q0, uint32_t row_address, int lane) {
    using T = typename G::T;
    if constexpr (std::is_same_v<T, float>) {
      typed<G, float>(prm, n, row_index, q0, row_address, lane);
    } else {
      if (prm.input == StemInput::same)
        typed<G, T>(prm, n, row_index, q0, row_address, lane);
      else if (prm.input == StemInput::f32)
        typed<G, float>(prm, n, row_index, q0, row_address, lane);
      else
        typed<G, uint8_t>(prm, n, row_index, q0, row_address, lane);
    }
  }
};

}  // namespace cnnkernels
