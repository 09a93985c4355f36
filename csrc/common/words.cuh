// Arithmetic on 32-bit words that hold one fp32 or two fp16/bf16 elements. Max-pool compares and
// keeps positions in this packed form, which halves its instructions for 16-bit types.
#pragma once

#include "common/ptx.cuh"
#include "common/vec.cuh"

namespace cnnkernels {

template <class T>
struct Words;  // kPerWord, kNegInf (a word of -infinities), maximum, greater_mask, equal_mask, ...

template <>
struct Words<float> {
  static constexpr int kPerWord = 1;
  static constexpr uint32_t kNegInf = 0xff800000u;
  static constexpr uint32_t kPosition = 1u;  // times a position: that position in every element
  using Raw = uint32_t;

  __device__ static uint32_t maximum(uint32_t a, uint32_t b) {  // NaN if either is
    return __float_as_uint(max_nan(__uint_as_float(a), __uint_as_float(b)));
  }
  __device__ static uint32_t greater_mask(uint32_t a, uint32_t b) {
    return __uint_as_float(a) > __uint_as_float(b) ? ~0u : 0u;
  }
  __device__ static uint32_t equal_mask(uint32_t a, uint32_t b) {
    return __uint_as_float(a) == __uint_as_float(b) ? ~0u : 0u;
  }
  __device__ static uint32_t add(uint32_t a, uint32_t b) {
    return __float_as_uint(__uint_as_float(a) + __uint_as_float(b));
  }
  __device__ static uint32_t where(uint32_t w, uint32_t positions, uint32_t position) {
    return positions == position ? w : 0u;
  }
  __device__ static bool has_nan(uint32_t a) { return (a & 0x7fffffffu) > 0x7f800000u; }
  __device__ static float element(uint32_t w, int) { return __uint_as_float(w); }
  __device__ static uint32_t pack(const float* f) { return __float_as_uint(f[0]); }
};

template <class Pair>  // what the two 16-bit types share
struct PairWords {
  static constexpr int kPerWord = 2;
  static constexpr uint32_t kPosition = 0x00010001u;
  using Raw = uint16_t;

  __device__ static Pair pair(uint32_t w) { return *reinterpret_cast<Pair*>(&w); }
  __device__ static uint32_t greater_mask(uint32_t a, uint32_t b) {
    return __hgt2_mask(pair(a), pair(b));
  }
  __device__ static uint32_t equal_mask(uint32_t a, uint32_t b) {
    return __heq2_mask(pair(a), pair(b));
  }
  __device__ static bool has_nan(uint32_t a) { return equal_mask(a, a) != ~0u; }
  // Rounded once, as a sum in fp32 rounded to 16 bits is: 24 bits are 2 more than twice 11.
  __device__ static uint32_t add(uint32_t a, uint32_t b) {
    const Pair sum = __hadd2_rn(pair(a), pair(b));
    return *reinterpret_cast<const uint32_t*>(&sum);
  }
  // w's elements whose position (16 bits each) is this one, 0 for the others. Positions are
  // compared as what they are in fp16: small subnormal numbers.
  __device__ static uint32_t where(uint32_t w, uint32_t positions, uint32_t position) {
    return w & PairWords<__half2>::equal_mask(positions, position * kPosition);
  }
};

template <>
struct Words<__nv_bfloat16> : PairWords<__nv_bfloat162> {
  static constexpr uint32_t kNegInf = 0xff80ff80u;
  __device__ static uint32_t maximum(uint32_t a, uint32_t b) { return max_nan_bf16x2(a, b); }
  __device__ static float element(uint32_t w, int e) {
    return __uint_as_float((e & 1) ? w & 0xffff0000u : w << 16);
  }
  __device__ static uint32_t pack(const float* f) { return pack_bf16x2(f[0], f[1]); }
};

template <>
struct Words<__half> : PairWords<__half2> {
  static constexpr uint32_t kNegInf = 0xfc00fc00u;
  __device__ static uint32_t maximum(uint32_t a, uint32_t b) { return max_nan_f16x2(a, b); }
  __device__ static float element(uint32_t w, int e) {
    return __half2float(__ushort_as_half(static_cast<uint16_t>((e & 1) ? w >> 16 : w)));
  }
  __device__ static uint32_t pack(const float* f) { return pack_f16x2(f[0], f[1]); }
};

// One scan step: where v > best, take v and its position. A NaN goes into `best` (the value is then
// right, its position is not: callers rescan windows whose result holds a NaN, which are rare).
template <class T>
__device__ __forceinline__ void scan_step(uint32_t& best, uint32_t& position, uint32_t v,
                                          uint32_t v_position) {
  const uint32_t take = Words<T>::greater_mask(v, best);
  position = (take & v_position) | (~take & position);
  best = Words<T>::maximum(best, v);
}
template <>
__device__ __forceinline__ void scan_step<float>(uint32_t& best, uint32_t& position, uint32_t v,
                                                 uint32_t v_position) {
  position = __uint_as_float(v) > __uint_as_float(best) ? v_position : position;
  best = Words<float>::maximum(best, v);
}

// N elements of N * sizeof(T) in {2, 4, 8, 16} bytes, aligned to that, as words; zeros unless ok.
template <class T, int N>
struct Chunk {
  static constexpr int kBytes = N * static_cast<int>(sizeof(T));
  static constexpr int kWords = kBytes < 4 ? 1 : kBytes / 4;
  alignas(kBytes < 4 ? 4 : kBytes) uint32_t w[kWords];

  __device__ static Chunk filled(uint32_t word) {
    Chunk c;
#pragma unroll
    for (int i = 0; i < kWords; ++i) c.w[i] = word;
    return c;
  }
  __device__ void load(const void* p) {
    if constexpr (kBytes == 16) {
      *reinterpret_cast<uint4*>(w) = *static_cast<const uint4*>(p);
    } else if constexpr (kBytes == 8) {
      const uint2 v = *static_cast<const uint2*>(p);
      w[0] = v.x, w[1] = v.y;
    } else if constexpr (kBytes == 4) {
      w[0] = *static_cast<const uint32_t*>(p);
    } else {
      w[0] = *static_cast<const uint16_t*>(p);
    }
  }
  __device__ void store(void* p) const {
    if constexpr (kBytes == 16) {
      *static_cast<uint4*>(p) = make_uint4(w[0], w[1], w[2], w[3]);
    } else if constexpr (kBytes == 8) {
      *static_cast<uint2*>(p) = make_uint2(w[0], w[1]);
    } else if constexpr (kBytes == 4) {
      *static_cast<uint32_t*>(p) = w[0];
    } else {
      *static_cast<uint16_t*>(p) = static_cast<uint16_t>(w[0]);
    }
  }
  __device__ float element(int e) const {
    return Words<T>::element(w[e / Words<T>::kPerWord], e % Words<T>::kPerWord);
  }
  // Element e of bytes.
  __device__ int byte(int e) const { return static_cast<int>(w[e / 4] >> (8 * (e % 4)) & 0xffu); }
  // First N elements of f, rounded.
  __device__ static Chunk rounded(const float* f) {
    Chunk c;
#pragma unroll
    for (int i = 0; i < kWords; ++i) c.w[i] = Words<T>::pack(f + i * Words<T>::kPerWord);
    return c;
  }
};

}  // namespace cnnkernels
