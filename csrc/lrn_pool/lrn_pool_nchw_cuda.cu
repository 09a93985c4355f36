// Fused (bias, ReLU,) LRN and 3x3/2 max-pool, NCHW: the input is read once, and only the pooled
// output is written. Block = a band of output rows of one image and (nearly always) all channels;
// it walks the channels as common/lrn_walk.cuh says. A warp pools the band's normalised rows of a
// channel where they lie in shared memory, a thread two adjacent outputs (fp32: one) of a strip of
// rows (common/pool_walk.cuh). Neighbouring bands repeat one input row.
#include "common/dispatch.cuh"
#include "common/fast_div.h"
#include "common/lrn_walk.cuh"
#include "common/pool_walk.cuh"
#include "lrn_pool/lrn_pool.h"

namespace cnnkernels {
namespace {

constexpr int K = 3, S = 2;
using Step = LrnForwardStep;
template <class T>
using Walk = LrnWalk<T, 2>;
// Blocks that share a multiprocessor: with 80 registers, packed offsets would spill up to 12 bytes.
template <class T, bool kOffsets>
constexpr int kResident = kOffsets && sizeof(T) == 2 ? 2 : 3;

struct Args {
  LrnWalkArgs walk;  // tile: pixel_tiles are bands
  uint8_t* offsets;
  int h, w, oh, ow, pad_h, pad_w;
  int rows, strip;  // output rows of a band, of a thread
  FastDiv by_words;
  int items;
};

template <class T, bool kBias, bool kOffsets>
__global__ void __launch_bounds__(Walk<T>::kThreads, kResident<T, kOffsets>)
    lrn_pool_nchw_kernel(const Args a, const LrnConstants lrn) {
  using W = Words<T>;
  using Raw = typename W::Raw;
  extern __shared__ __align__(16) char shared[];
  const plan::LrnTile& tile = a.walk.tile;
  int64_t block = blockIdx.x;
  const int c0 = static_cast<int>(block % tile.channel_tiles) * tile.channels;
  block /= tile.channel_tiles;
  const int oh0 = static_cast<int>(block % tile.pixel_tiles) * a.rows;
  const int64_t n = block / tile.pixel_tiles;
  const int rows = min(a.rows, a.oh - oh0),
            c1 = min(static_cast<int>(a.walk.channels), c0 + tile.channels);
  const int h_lo = max(0, oh0 * S - a.pad_h);
  const int h_hi = min(a.h, (oh0 + rows - 1) * S - a.pad_h + K);
  const int64_t p0 = int64_t{h_lo} * a.w, image = n * a.walk.channels;
  const T* x = static_cast<const T*>(a.walk.inputs[0]) + image * a.walk.plane + p0;

  lrn_walk<Step, Walk<T>, kBias>(
      a.walk, lrn, shared, n, p0, (h_hi - h_lo) * a.w, c0, c1, x,
      [&](int c, const T*, const T* normalised, int lane) {
        for (int item = lane; item < a.items; item += 32) {
          uint32_t word = item;
          const int r0 = a.by_words.split(word) * a.strip, ow = word * W::kPerWord;
          const int64_t at = ((image + c) * a.oh + oh0 + r0) * a.ow + ow;
          PoolStrip<T> p;
          p.plane = reinterpret_cast<const Raw*>(normalised) - h_lo * a.w;
          p.h_hi = h_hi, p.w = a.w;
          p.h0 = (oh0 + r0) * S - a.pad_h, p.w0 = ow * S - a.pad_w;
          p.rows = min(a.strip, rows - r0), p.columns = min(W::kPerWord, a.ow - ow);
          p.y = static_cast<Raw*>(a.walk.out) + at, p.offsets = a.offsets + at, p.ow = a.ow;
          p.floor = W::kNegInf, p.no_gradient = 0;
          pool_walk<K, S, kOffsets>(p);
        }
      });
}

template <class T, bool kBias, bool kOffsets>
cudaError_t launch(const LrnPoolParams& p, cudaStream_t stream) {
  static_assert(Walk<T>::kRow ==
                (sizeof(T) == 2 ? plan::kLrnPoolPixels16 : plan::kLrnPoolPixels32));
  const PoolShape& s = p.pool;
  const int64_t plane = int64_t{s.h} * s.w;
  Args a{{{p.x, nullptr}, p.bias, p.y, s.n, s.c, plane},
         p.offsets,
         s.h,
         s.w,
         s.oh,
         s.ow,
         s.pad_h,
         s.pad_w};
  a.rows = plan::lrn_pool_rows(s, p.dtype);
  if (a.rows == 0) return cudaErrorInvalidValue;
  plan::LrnTile& tile = a.walk.tile;
  tile.pixel_tiles = static_cast<int>(ceil_div(s.oh, a.rows));
  const int64_t bands = s.n * tile.pixel_tiles;
  plan::split_channels(tile, s.c, bands, Walk<T>::kStage, Step::kLag, kResident<T, kOffsets>);
  a.walk.pitch = Walk<T>::pitch(plane);
  const int64_t words = ceil_div(s.ow, Words<T>::kPerWord);
  a.strip = plan::strip_rows(a.rows, words, 32, 1, 1);
  a.by_words = FastDiv(words), a.items = static_cast<int>(words * ceil_div(a.rows, a.strip));
  auto* kernel = lrn_pool_nchw_kernel<T, kBias, kOffsets>;
  const int bytes = Walk<T>::shared_bytes(Step::kStreams, a.walk, Step::kLag);
  const cudaError_t error = allow_shared(kernel, bytes);
  if (error != cudaSuccess) return error;
  const int64_t blocks = bands * tile.channel_tiles;
  if (blocks > kMaxThreads) return cudaErrorInvalidValue;
  kernel<<<static_cast<unsigned>(blocks), Walk<T>::kThreads, bytes, stream>>>(a,
                                                                              LrnConstants(p.lrn));
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_lrn_pool_nchw(const LrnPoolParams& p, cudaStream_t stream) {
  return dispatch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    if (p.bias)
      return p.offsets ? launch<T, true, true>(p, stream) : launch<T, true, false>(p, stream);
    return p.offsets ? launch<T, false, true>(p, stream) : launch<T, false, false>(p, stream);
  });
}

}  // namespace cnnkernels
