// LRN in NCHW, window of 5: a block walks the channels of a range of pixels of one image; a thread
// keeps the window of its pixels in registers, so each square and power is computed once.
// Rows of 8 channels (one per warp) make a stage. They come into shared memory by 16-byte
// asynchronous copies, one or two stages ahead, and results leave through shared memory a stage
// later, so one barrier per stage is enough and odd planes (55 x 55) cost no partial sectors. Rows
// lie a pitch apart that equals the plane's size modulo 16: each keeps its address modulo 16, and
// moving on to the next channel is one addition.
#pragma once

#include "common/lrn_math.cuh"
#include "common/plane_tile.cuh"

namespace cnnkernels {

struct LrnWalkArgs {
  const void* inputs[2];  // x, and dy in the backward pass
  const void* bias;
  void* out;
  int64_t images, channels, plane;  // plane: pixels
  plan::LrnTile tile;
  int pitch;  // bytes from row to row
};

// kWide: how many times 512 (fp32: 256) pixels a block has, less what alignment may cost.
template <class T, int kWide = 1>
struct LrnWalk {
  using Element = T;
  static constexpr int kThreads = 256, kStage = kThreads / 32;      // channels per stage
  static constexpr int kPixels = (sizeof(T) == 2 ? 2 : 1) * kWide;  // per thread
  static constexpr int kRow = kThreads * kPixels - kVecSize<T> + 1;
  static constexpr int kPieces = 2 * kWide;          // most of a row per thread of a warp
  static constexpr int kSlots = kWide == 1 ? 3 : 2;  // stages of input
  static int pitch(int64_t plane) {
    return tile_reserve(kRow * sizeof(T)) + static_cast<int>(plane * sizeof(T) % 16);
  }
  static int shared_bytes(int streams, const LrnWalkArgs& a, int lag) {
    const int biases = a.bias ? (a.tile.channels + 2 * lag + kStage) * 4 : 0;
    return (streams * kSlots + 2) * kStage * a.pitch + biases;
  }
};

// Step: kStreams, kLag (channels between read and written), kResident (blocks that share a
// multiprocessor), and next(v, g, cut, lrn), which takes a channel's value and the gradient of the
// channel 2 before it and returns the result of the channel kLag before it.
// store(c, row, tile, lane): a warp takes the results of channel c from the tile, which has the
// address modulo 16 of row = out + c * plane.
template <class Step, class W, bool kBias, class Store>
__device__ __forceinline__ void lrn_walk(const LrnWalkArgs& a, const LrnConstants& lrn,
                                         char* shared, int64_t n, int64_t p0, int pixels, int c0,
                                         int c1, const typename W::Element* out,
                                         const Store& store) {
  using T = typename W::Element;
  constexpr int kStage = W::kStage, P = W::kPixels, kStreams = Step::kStreams, kLag = Step::kLag;
  constexpr int kDelay = 2;  // gradients are needed once their channel's window is complete
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int channels = static_cast<int>(a.channels);
  const int begin = max(0, c0 - kLag), end = c1 + kLag;  // walked; rows beyond C are 0
  const int stage_bytes = kStage * a.pitch;
  const uint32_t plane_bytes = static_cast<uint32_t>(a.plane * sizeof(T));
  const int64_t at = n * a.channels * a.plane + p0, numel = a.images * a.channels * a.plane;
  // Whether whole 16-byte pieces around the rows lie in the tensors.
  const bool inner =
      at >= kVecSize<T> && at + (min(end, channels) - 1) * a.plane + pixels + kVecSize<T> <= numel;

  // Offsets into shared memory: stages of input first, stream by stream, then two of results, then
  // the biases. starts[k]: the first row of a stage of stream k; the last one is the results'.
  int starts[kStreams + 1];
#pragma unroll
  for (int k = 0; k <= kStreams; ++k) {
    const T* base = k < kStreams ? static_cast<const T*>(a.inputs[k]) + at : out;
    const uint32_t low = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(base));
    const uint32_t row0 = (begin - (k < kStreams ? kDelay * k : kLag)) * plane_bytes;
    starts[k] = k * W::kSlots * stage_bytes + static_cast<int>(low + row0 & 15);
  }
  const int last_slot = (W::kSlots - 1) * stage_bytes, row_offset = warp * a.pitch;
  auto* biases = reinterpret_cast<float*>(shared + (kStreams * W::kSlots + 2) * stage_bytes);
  if (kBias) {
    const T* bias = static_cast<const T*>(a.bias);
    for (int i = threadIdx.x; i < end - begin + kStage; i += W::kThreads)
      biases[i] = begin + i < channels ? to_float(bias[begin + i]) : 0.f;
  }

  // The warp's row of the next stage to load: its channel and place in the tensors, gradients
  // kDelay channels behind; its address modulo 16 is that of all its rows.
  int loading = begin + warp;
  const int stop = min(end, channels);
  int64_t row_at = at + loading * a.plane;
  const int64_t step_rows = kStage * a.plane;
  auto load_stage = [&](int slot) {
#pragma unroll
    for (int k = 0; k < kStreams; ++k) {
      const T* first = static_cast<const T*>(a.inputs[k]);
      const T* row = first + row_at - kDelay * k * a.plane;
      const Run<T> run(first + at + (begin + warp - kDelay * k) * a.plane, pixels);
      T* tile = reinterpret_cast<T*>(shared + starts[k] + slot + row_offset);
      if (loading - kDelay * k < 0 || loading - kDelay * k >= stop) {
        for (int i = lane; i < pixels; i += 32) tile[i] = from_float<T>(0.f);
      } else if (inner) {
        run.template load<W::kPieces>(tile, row, lane, 32);
      } else {
        run.load_at_end(tile, row, first, first + numel, lane, 32);
      }
    }
    loading += kStage, row_at += step_rows;
    copy_async_commit();
  };
  int storing = begin - kStage + warp - kLag;  // channel of the warp's row of the last stage
  T* written = const_cast<T*>(out) + storing * a.plane;
  auto store_stage = [&](int slot) {
    if (storing >= c0 && storing < c1)
      store(storing, written, reinterpret_cast<T*>(shared + starts[kStreams] + slot + row_offset),
            lane);
    storing += kStage, written += step_rows;
  };

  const float floor = lrn.relu ? 0.f : -INFINITY;
  const float cut = lrn.relu ? 0.f : NAN;  // where v is at or below it, its gradient is 0
  // Threads beyond the tile's pixels work on what lies there in their rows: nobody reads it.
  Step step[P];
#pragma unroll
  for (int ahead = 0; ahead < W::kSlots - 1; ++ahead) load_stage(ahead * stage_bytes);
  int slot = 0, out_slot = 0;
  const float* bias = biases;
  for (int c = begin; c < end; c += kStage) {
    copy_async_wait<W::kSlots - 2>();
    __syncthreads();  // this stage's input and the last one's results are here, the rest is free
    load_stage(slot == 0 ? last_slot : slot - stage_bytes);
    store_stage(stage_bytes - out_slot);
    const char* rows = shared + slot + threadIdx.x * sizeof(T);
    char* results = shared + starts[kStreams] + out_slot + threadIdx.x * sizeof(T);
#pragma unroll
    for (int r = 0; r < kStage; ++r) {
      const float b = kBias ? bias[r] : 0.f;
#pragma unroll
      for (int i = 0; i < P; ++i) {
        float v = to_float(reinterpret_cast<const T*>(rows + starts[0])[i * W::kThreads]), g = 0.f;
        if (kBias) v += b;
        if (kStreams > 1)
          g = to_float(reinterpret_cast<const T*>(rows + starts[kStreams - 1])[i * W::kThreads]);
        const float result = step[i].template next<T>(max_nan(v, floor), g, cut, lrn);
        reinterpret_cast<T*>(results)[i * W::kThreads] = from_float<T>(result);
      }
      rows += a.pitch, results += a.pitch;
    }
    slot = slot == last_slot ? 0 : slot + stage_bytes;
    out_slot = stage_bytes - out_slot, bias += kStage;
  }
  __syncthreads();
  store_stage(stage_bytes - out_slot);
}

// q: squares (or terms) of the last three channels, pairs: sums of two, of this and the last two
// channels. Adds the newest and returns the sum of the window of five that ends there.
struct LrnWindowSum {
  float q[2] = {}, pairs[2] = {};  // of the channels 1 and 2 back; q[1] + q[0], one and two ago
  __device__ __forceinline__ float operator()(float newest) {
    const float pair = q[1] + q[0], sum = pairs[1] + pair + newest;
    pairs[1] = pairs[0], pairs[0] = pair;
    q[1] = q[0], q[0] = newest;
    return sum;
  }
};

struct LrnForwardStep {
  static constexpr int kStreams = 1, kLag = 2, kResident = 4;
  LrnWindowSum squares;
  float v[5] = {};  // v[k]: of k channels back

  template <class T>
  __device__ __forceinline__ float next(float newest, float, float, const LrnConstants& lrn) {
#pragma unroll
    for (int k = 4; k > 0; --k) v[k] = v[k - 1];
    v[0] = newest;
    const float sum = squares(product(newest, newest));
    TwoFloats d;
    denominators<T, 1>(v, &sum, lrn, &d);
    return LrnPower<T>::scaled(v[2], d, lrn);
  }
};

// dx = dy d^-b - 2 alpha b / size * v * sum over the window of t,  t = dy v d^(-b-1).
struct LrnBackwardStep {
  static constexpr int kStreams = 2, kLag = 4, kResident = 3;
  LrnWindowSum squares, terms;
  float v[5] = {}, direct[3] = {};  // direct[k]: of 2 + k channels back

  template <class T>
  __device__ __forceinline__ float next(float newest, float grad, float cut,
                                        const LrnConstants& lrn) {
#pragma unroll
    for (int k = 4; k > 0; --k) v[k] = v[k - 1];
#pragma unroll
    for (int k = 2; k > 0; --k) direct[k] = direct[k - 1];
    v[0] = newest;
    const float sum = squares(product(newest, newest));  // around the channel 2 back
    TwoFloats d;
    denominators<T, 1>(v, &sum, lrn, &d);
    float power, power1;
    LrnPower<T>::both(d, lrn, power, power1);
    direct[0] = product(grad, power);
    const float gathered = terms(product(grad * v[2], power1));  // around the channel 4 back
    const float result = fmaf(-2.f * lrn.scale * lrn.beta * v[4], gathered, direct[2]);
    return v[4] <= cut ? 0.f : result;
  }
};

}  // namespace cnnkernels
