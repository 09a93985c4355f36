// Fused (bias, ReLU,) LRN and 3x3/2 max-pool, channels_last: the input is read once and each pixel
// is normalised once. Block = an image, a band of output rows, a strip of output columns. Thread =
// one (input column, channel vector); it walks down the rows, normalises in registers, rounds to T
// and keeps the vertical maximum of three rows packed, so only that one goes through shared memory
// (double-buffered, one barrier per output row), where three columns make an output. The next two
// rows are loaded before the barrier. Rows outside the input are read clamped: a row seen twice
// changes nothing, if it keeps its own label.
#include "common/dispatch.cuh"
#include "common/fast_div.h"
#include "common/lrn_math.cuh"
#include "lrn_pool/lrn_pool.h"

namespace cnnkernels {
namespace {

constexpr int K = 3, S = 2, kHalo = 2;

struct Args {
  const void* x;
  const void* bias;
  void* y;
  uint8_t* offsets;
  int h, w, vectors, oh, ow, pad_h, pad_w;
  plan::LrnPoolTile tile;
  FastDiv by_vectors;
};

template <class T>
struct Raw {  // a vector and its two neighbours on each side, as loaded
  Chunk<T, kVecSize<T>> own;
  Chunk<T, kHalo> before, after;
};

template <class T, bool kBias>
__device__ __forceinline__ Chunk<T, kVecSize<T>> normalise(const Raw<T>& raw, const T* bias,
                                                           bool left, bool right,
                                                           const LrnConstants& lrn) {
  constexpr int V = kVecSize<T>;
  float v[V + 2 * kHalo], q[V + 2 * kHalo], sum[V];
  TwoFloats d[V];
  lrn_input<kBias>(raw.own, bias, true, lrn.relu, v + kHalo);
  lrn_input<kBias>(raw.before, bias - kHalo, left, lrn.relu, v);
  lrn_input<kBias>(raw.after, bias + V, right, lrn.relu, v + kHalo + V);
#pragma unroll
  for (int i = 0; i < V + 2 * kHalo; ++i) q[i] = product(v[i], v[i]);
  sums_of_5<V>(q, sum);
  denominators<T, V>(v, sum, lrn, d);
#pragma unroll
  for (int e = 0; e < V; ++e) sum[e] = LrnPower<T>::scaled(v[kHalo + e], d[e], lrn);
  return Chunk<T, V>::rounded(sum);
}

// One step of the scan down a column: the first maximum wins, but the last NaN.
template <class T>
__device__ __forceinline__ void join_row(uint32_t& best, uint32_t& position, uint32_t v,
                                         uint32_t v_position) {
  using W = Words<T>;
  const uint32_t take = W::greater_mask(v, best) | ~W::equal_mask(v, v);
  position = (take & v_position) | (~take & position);
  best = W::maximum(best, v);
}

// Columns are joined after rows, so a tie goes to the smaller position, not to the earlier column,
// and among NaN the larger position wins.
template <class T>
__device__ __forceinline__ void join_column(uint32_t& best, uint32_t& position, uint32_t v,
                                            uint32_t v_position) {
  using W = Words<T>;
  uint32_t smaller;  // all ones where v_position < position, element by element
  if constexpr (W::kPerWord == 1) {
    smaller = v_position < position ? ~0u : 0u;
  } else {
    smaller = (~((v_position | 0x80008000u) - position) >> 15 & 0x00010001u) * 0xffffu;
  }
  const uint32_t number = W::equal_mask(v, v), best_number = W::equal_mask(best, best);
  const uint32_t take = W::greater_mask(v, best) | (W::equal_mask(v, best) & smaller) |
                        (~number & (best_number | ~smaller));
  position = (take & v_position) | (~take & position);
  best = W::maximum(best, v);
}

// With 64 registers sm_80's code for a bias and offsets in 16 bit would spill 8 bytes.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
template <class T, bool kBiasAndOffsets>
constexpr int kResident = kBiasAndOffsets && sizeof(T) == 2 ? 1 : plan::kLrnPoolBlocks;
#else
template <class T, bool kBiasAndOffsets>
constexpr int kResident = plan::kLrnPoolBlocks;
#endif

template <class T, bool kBias, bool kOffsets>
__global__ void __launch_bounds__(plan::kLrnPoolThreads, kResident<T, kBias && kOffsets>)
    lrn_pool_kernel(const Args a, const LrnConstants lrn) {
  using W = Words<T>;
  constexpr int V = kVecSize<T>;
  using Vector = Chunk<T, V>;
  extern __shared__ __align__(16) uint4 shared[];  // [buffer][value, position][item]

  int64_t block = blockIdx.x;
  const int strip = static_cast<int>(block % a.tile.strips);
  block /= a.tile.strips;
  const int band = static_cast<int>(block % a.tile.bands);
  const int64_t n = block / a.tile.bands;
  const int oh0 = band * a.tile.rows, oh1 = min(a.oh, oh0 + a.tile.rows);
  const int ow0 = strip * a.tile.width, ow1 = min(a.ow, ow0 + a.tile.width);
  const int w_lo = max(0, ow0 * S - a.pad_w), w_hi = min(a.w, (ow1 - 1) * S - a.pad_w + K);
  const int items = (w_hi - w_lo) * a.vectors, room = static_cast<int>(blockDim.x);
  const int channels = a.vectors * V;
  const int64_t row = int64_t{a.w} * channels;
  const T* image = static_cast<const T*>(a.x) + n * a.h * row;
  const T* bias = static_cast<const T*>(a.bias);

  // The thread's column and vector; threads beyond the last one repeat it, and nobody reads theirs.
  uint32_t vector = min(static_cast<int>(threadIdx.x), items - 1);
  const T* column = image + w_lo * channels + vector * V;
  a.by_vectors.split(vector);
  const bool left = vector > 0, right = static_cast<int>(vector) + 1 < a.vectors;
  const T* vector_bias = bias + vector * V;
  // Loads the column's next row, at 32 bits into the image; rows outside the input are the nearest
  // one inside.
  int h_next = oh0 * S - a.pad_h;
  int at_next = static_cast<int>((column - image) + min(max(h_next, 0), a.h - 1) * row);
  auto load = [&] {
    Raw<T> raw;
    raw.before = raw.after = Chunk<T, kHalo>::filled(0u);
    const T* p_next = image + at_next;
    raw.own.load(p_next);
    if (left) raw.before.load(p_next - kHalo);
    if (right) raw.after.load(p_next + V);
    if (h_next >= 0 && h_next + 1 < a.h) at_next += static_cast<int>(row);
    ++h_next;
    return raw;
  };

  // The thread's output column and vector, where it has one (there are fewer outputs than items),
  // and the three items it joins; a column outside the input is the nearest one, under its label.
  uint32_t out_vector = threadIdx.x;
  const int ow = ow0 + a.by_vectors.split(out_vector), w0 = ow * S - a.pad_w;
  int joined[K];
  uint32_t labels[K];
#pragma unroll
  for (int kw = 0; kw < K; ++kw) {
    const int w = min(max(w0 + kw, w_lo), w_hi - 1);
    joined[kw] = (w - w_lo) * a.vectors + static_cast<int>(out_vector);
    labels[kw] = (w - w0) * W::kPosition;
  }
  int64_t out = ((n * a.oh + oh0) * a.ow + ow) * a.vectors + out_vector;

  // above: the row shared with the previous output row. next: the two rows below it, as loaded.
  Vector above = normalise<T, kBias>(load(), vector_bias, left, right, lrn);
  Raw<T> next[S] = {load(), load()};

  uint4* values = shared;  // and positions behind them, of this output row
  uint4* other = shared + (kOffsets ? 2 : 1) * room;
  for (int oh = oh0; oh < oh1; ++oh, out += int64_t{a.ow} * a.vectors) {
    // Vertical maximum of rows h0, h0 + 1, h0 + 2.
    const int h0 = oh * S - a.pad_h;
    Vector best = above;
    auto position = Vector::filled(max(0, -h0) * K * W::kPosition);
#pragma unroll
    for (int i = 0; i < S; ++i) {
      above = normalise<T, kBias>(next[i], vector_bias, left, right, lrn);
      next[i] = load();
      const uint32_t label = (min(h0 + 1 + i, a.h - 1) - h0) * K * W::kPosition;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (kOffsets) {
          join_row<T>(best.w[k], position.w[k], above.w[k], label);
        } else {
          best.w[k] = W::maximum(best.w[k], above.w[k]);
        }
      }
    }
    best.store(values + threadIdx.x);
    if (kOffsets) position.store(values + room + threadIdx.x);
    __syncthreads();

    // Three columns make an output.
    if (ow < ow1) {
#pragma unroll
      for (int kw = 0; kw < K; ++kw) {
        Vector v, p;
        v.load(values + joined[kw]);
        if (kOffsets) {
          p.load(values + room + joined[kw]);
#pragma unroll
          for (int k = 0; k < 4; ++k) p.w[k] += labels[kw];
        }
        if (kw == 0) {
          best = v, position = p;
          continue;
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          if (kOffsets) {
            join_column<T>(best.w[k], position.w[k], v.w[k], p.w[k]);
          } else {
            best.w[k] = W::maximum(best.w[k], v.w[k]);
          }
        }
      }
      best.store(static_cast<uint4*>(a.y) + out);
      if (kOffsets) {
        const uint32_t* p = position.w;
        if constexpr (W::kPerWord == 2) {
          reinterpret_cast<uint2*>(a.offsets)[out] =
              make_uint2(__byte_perm(p[0], p[1], 0x6420), __byte_perm(p[2], p[3], 0x6420));
        } else {
          reinterpret_cast<uint32_t*>(a.offsets)[out] =
              __byte_perm(__byte_perm(p[0], p[1], 0x0040), __byte_perm(p[2], p[3], 0x0040), 0x5410);
        }
      }
    }
    uint4* free = other;
    other = values, values = free;
  }
}

template <class T, bool kBias, bool kOffsets>
cudaError_t launch(const LrnPoolParams& p, cudaStream_t stream) {
  const PoolShape& s = p.pool;
  Args a{p.x,  p.bias, p.y,     p.offsets, s.h, s.w, static_cast<int>(s.c / kVecSize<T>),
         s.oh, s.ow,   s.pad_h, s.pad_w};
  a.tile = plan::lrn_pool_tile(s, a.vectors);
  if (a.tile.threads == 0) return cudaErrorInvalidValue;
  a.by_vectors = FastDiv(a.vectors);
  const int bytes = a.tile.threads * 2 * (kOffsets ? 2 : 1) * static_cast<int>(sizeof(uint4));
  auto* kernel = lrn_pool_kernel<T, kBias, kOffsets>;
  const cudaError_t error = allow_shared(kernel, bytes);
  if (error != cudaSuccess) return error;
  const int64_t blocks = s.n * a.tile.bands * a.tile.strips;
  if (blocks > kMaxThreads) return cudaErrorInvalidValue;
  kernel<<<static_cast<unsigned>(blocks), a.tile.threads, bytes, stream>>>(a, LrnConstants(p.lrn));
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_lrn_pool(const LrnPoolParams& p, cudaStream_t stream) {
  if (p.pool.n * p.pool.c * p.pool.oh * p.pool.ow == 0) return cudaSuccess;
  if (p.layout == Layout::nchw) return launch_lrn_pool_nchw(p, stream);
  return dispatch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    if (p.bias)
      return p.offsets ? launch<T, true, true>(p, stream) : launch<T, true, false>(p, stream);
    return p.offsets ? launch<T, false, true>(p, stream) : launch<T, false, false>(p, stream);
  });
}

}  // namespace cnnkernels
