// Instruction sets of the CPU kernels. One source is compiled for each of them and chosen at run
// time, so that one wheel runs everywhere and still uses AVX2 or AVX-512 where they are. Kernels
// are plain loops that the compiler vectorises; what it does not find by itself (fp16 conversions,
// bit masks) is a member of the instruction set, for blocks of kLanes elements. CNNKERNELS_CPU_ISA
// = portable, avx2 or avx512 overrides the choice.
#pragma once

#include <cstdlib>
#include <cstring>

#include "common/cpu_math.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CNNKERNELS_X86 1
#include <immintrin.h>
#define CNNKERNELS_TARGET(features) inline __attribute__((target(features)))
#endif

// Lambdas on the way to a member of an instruction set need it: a copy that the compiler made of
// one before with_isa pulls it in would call that member.
#define CNNKERNELS_LAMBDA __attribute__((always_inline))

namespace cnnkernels {

constexpr int64_t kLanes = 16;

struct Portable {
  static constexpr const char* kName = "portable";
  static bool supported() { return true; }
  // v = x; x = v rounded to nearest even.
  template <class T>
  static inline void widen(const T* x, float* v) {
    for (int e = 0; e < kLanes; ++e) v[e] = to_f32(x[e]);
  }
  template <class T>
  static inline void narrow(const float* v, T* x) {
    for (int e = 0; e < kLanes; ++e) x[e] = from_f32<T>(v[e]);
  }
  // Bit e: v[e] > 0 or NaN.
  static inline unsigned positive(const float* v) {
    unsigned bits = 0;
    for (int e = 0; e < kLanes; ++e) bits |= unsigned{!(v[e] <= 0.f)} << e;
    return bits;
  }
  // out = x where the bit is set, else 0.
  template <class Bits>
  static inline void keep(unsigned bits, const Bits* x, Bits* out) {
    for (int e = 0; e < kLanes; ++e) out[e] = x[e] & static_cast<Bits>(0u - (bits >> e & 1));
  }
  // sum += v where at is the label.
  template <class Label>
  static inline void add_where(const Label* at, int32_t label, const float* v, float* sum) {
    for (int e = 0; e < kLanes; ++e) sum[e] += at[e] == static_cast<Label>(label) ? v[e] : 0.f;
  }
  // The even and the odd ones of 2 * kLanes elements.
  static inline void split(const float* v, float* even, float* odd) {
    for (int e = 0; e < kLanes; ++e) even[e] = v[2 * e], odd[e] = v[2 * e + 1];
  }
  template <class Label>
  static inline void narrow(const int32_t* v, Label* x) {
    for (int e = 0; e < kLanes; ++e) x[e] = static_cast<Label>(v[e]);
  }
};

#ifdef CNNKERNELS_X86
// Members without always_inline: they become part of callers of their own instruction set only,
// once with_isa's functions have pulled everything in. Vectors never pass between functions by
// value, which would depend on the instruction set.
struct Avx2 : Portable {
  static constexpr const char* kName = "avx2";
  static bool supported() { return __builtin_cpu_supports("x86-64-v3"); }
  using Portable::narrow, Portable::widen, Portable::add_where;
  CNNKERNELS_TARGET("avx2,f16c") static void widen(const Half* x, float* v) {
    for (int e = 0; e < kLanes; e += 8)
      _mm256_storeu_ps(v + e, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(x + e))));
  }
  CNNKERNELS_TARGET("avx2,f16c") static void narrow(const float* v, Half* x) {
    for (int e = 0; e < kLanes; e += 8)
      _mm_storeu_si128((__m128i*)(x + e), _mm256_cvtps_ph(_mm256_loadu_ps(v + e), 0));
  }
  CNNKERNELS_TARGET("avx2") static unsigned positive(const float* v) {
    const auto half = [](const float* h) __attribute__((target("avx2"), always_inline)) {
      const __m256 above = _mm256_cmp_ps(_mm256_loadu_ps(h), _mm256_setzero_ps(), _CMP_NLE_UQ);
      return static_cast<unsigned>(_mm256_movemask_ps(above));
    };
    return half(v) | half(v + 8) << 8;
  }
  CNNKERNELS_TARGET("avx2") static void keep(unsigned bits, const uint32_t* x, uint32_t* out) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    for (int e = 0; e < kLanes; e += 8) {
      const __m256i at = _mm256_and_si256(_mm256_set1_epi32(bits >> e), bit);
      const __m256i kept = _mm256_cmpeq_epi32(at, bit);
      _mm256_storeu_si256((__m256i*)(out + e),
                          _mm256_and_si256(kept, _mm256_loadu_si256((const __m256i*)(x + e))));
    }
  }
  CNNKERNELS_TARGET("avx2") static void keep(unsigned bits, const uint16_t* x, uint16_t* out) {
    const __m256i bit = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096,
                                          8192, 16384, static_cast<int16_t>(32768));
    const __m256i at = _mm256_and_si256(_mm256_set1_epi16(static_cast<int16_t>(bits)), bit);
    const __m256i kept = _mm256_cmpeq_epi16(at, bit);
    _mm256_storeu_si256((__m256i*)out,
                        _mm256_and_si256(kept, _mm256_loadu_si256((const __m256i*)x)));
  }
  CNNKERNELS_TARGET("avx2")
  static void add_where(const uint8_t* at, int32_t label, const float* v, float* sum) {
    const __m128i here = _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i*)at),
                                        _mm_set1_epi8(static_cast<int8_t>(label)));
    for (int e = 0; e < kLanes; e += 8) {
      const __m256i wide = _mm256_cvtepi8_epi32(e ? _mm_srli_si128(here, 8) : here);
      const __m256 kept = _mm256_and_ps(_mm256_castsi256_ps(wide), _mm256_loadu_ps(v + e));
      _mm256_storeu_ps(sum + e, _mm256_add_ps(_mm256_loadu_ps(sum + e), kept));
    }
  }
};

struct Avx512 : Portable {
  static constexpr const char* kName = "avx512";
  static bool supported() { return __builtin_cpu_supports("x86-64-v4"); }
  using Portable::narrow, Portable::widen, Portable::add_where;
  CNNKERNELS_TARGET("avx512f") static void widen(const Half* x, float* v) {
    _mm512_storeu_ps(v, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)x)));
  }
  CNNKERNELS_TARGET("avx512f") static void narrow(const float* v, Half* x) {
    _mm256_storeu_si256((__m256i*)x, _mm512_cvtps_ph(_mm512_loadu_ps(v), 0));
  }
  // Of these GCC 12 would make halves or quarters, and wait for them to reach memory as a whole.
  CNNKERNELS_TARGET("avx512f") static void widen(const BFloat16* x, float* v) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)x));
    _mm512_storeu_si512(v, _mm512_slli_epi32(wide, 16));
  }
  CNNKERNELS_TARGET("avx512f") static void narrow(const float* v, BFloat16* x) {
    const __m512i bits = _mm512_loadu_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(_mm512_loadu_ps(v), _mm512_loadu_ps(v), _CMP_UNORD_Q);
    const __m512i rounded =
        _mm512_mask_mov_epi32(_mm512_srli_epi32(sum, 16), nan, _mm512_set1_epi32(0x7fc0));
    _mm256_storeu_si256((__m256i*)x, _mm512_cvtepi32_epi16(rounded));
  }
  CNNKERNELS_TARGET("avx512f") static unsigned positive(const float* v) {
    return _mm512_cmp_ps_mask(_mm512_loadu_ps(v), _mm512_setzero_ps(), _CMP_NLE_UQ);
  }
  CNNKERNELS_TARGET("avx512f") static void keep(unsigned bits, const uint32_t* x, uint32_t* out) {
    const __m512i kept = _mm512_maskz_loadu_epi32(static_cast<__mmask16>(bits), x);
    _mm512_storeu_si512(out, kept);
  }
  CNNKERNELS_TARGET("avx512bw,avx512vl")
  static void keep(unsigned bits, const uint16_t* x, uint16_t* out) {
    const __m256i kept = _mm256_maskz_loadu_epi16(static_cast<__mmask16>(bits), x);
    _mm256_storeu_si256((__m256i*)out, kept);
  }
  CNNKERNELS_TARGET("avx512bw,avx512vl")
  static void add_where(const uint8_t* at, int32_t label, const float* v, float* sum) {
    const __m128i labels = _mm_set1_epi8(static_cast<int8_t>(label));
    const __mmask16 here = _mm_cmpeq_epi8_mask(_mm_loadu_si128((const __m128i*)at), labels);
    const __m512 sums = _mm512_loadu_ps(sum);
    _mm512_storeu_ps(sum, _mm512_add_ps(sums, _mm512_maskz_loadu_ps(here, v)));
  }
  CNNKERNELS_TARGET("avx512f") static void narrow(const int32_t* v, uint8_t* x) {
    _mm_storeu_si128((__m128i*)x, _mm512_cvtepi32_epi8(_mm512_loadu_si512(v)));
  }
  CNNKERNELS_TARGET("avx512f") static void split(const float* v, float* even, float* odd) {
    const __m512i at = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i next = _mm512_add_epi32(at, _mm512_set1_epi32(1));
    const __m512 low = _mm512_loadu_ps(v), high = _mm512_loadu_ps(v + kLanes);
    _mm512_storeu_ps(even, _mm512_permutex2var_ps(low, at, high));
    _mm512_storeu_ps(odd, _mm512_permutex2var_ps(low, next, high));
  }
};

template <class F>
__attribute__((target("arch=x86-64-v3"), flatten)) void with_avx2(const F& f) {
  f(Avx2{});
}
template <class F>
__attribute__((target("arch=x86-64-v4,prefer-vector-width=512"), flatten)) void with_avx512(
    const F& f) {
  f(Avx512{});
}

inline int chosen_isa() {
  static const int chosen = [] {
    const int best = Avx512::supported() ? 2 : Avx2::supported() ? 1 : 0;
    const char* name = std::getenv("CNNKERNELS_CPU_ISA");
    if (!name || !*name) return best;
    for (int i = 0; i <= best; ++i)
      if (!std::strcmp(name, i == 2 ? Avx512::kName : i == 1 ? Avx2::kName : Portable::kName))
        return i;
    STD_TORCH_CHECK(false, "CNNKERNELS_CPU_ISA is ", name,
                    "; allowed are portable, avx2 and avx512, as far as the processor has them");
  }();
  return chosen;
}

// f(instruction set), everything that f calls compiled for that set and inlined.
template <class F>
void with_isa(const F& f) {
  if (chosen_isa() == 2) return with_avx512(f);
  if (chosen_isa() == 1) return with_avx2(f);
  f(Portable{});
}
#else
template <class F>
void with_isa(const F& f) {
  f(Portable{});
}
#endif

// v = `count` elements of x and zeros; `count` elements of x = v, rounded. Whole blocks unless
// told.
template <class Isa, class T>
CNNKERNELS_INLINE void load(const T* x, float* v, int64_t count = kLanes) {
  if (count < kLanes) {
    T padded[kLanes] = {};
    std::memcpy(padded, x, count * sizeof(T));
    return Isa::widen(padded, v);
  }
  Isa::widen(x, v);
}
template <class Isa, class T>
CNNKERNELS_INLINE void store(const float* v, T* x, int64_t count = kLanes) {
  if (count < kLanes) {
    T padded[kLanes];
    Isa::narrow(v, padded);
    std::memcpy(x, padded, count * sizeof(T));
    return;
  }
  Isa::narrow(v, x);
}

// Calls f(instruction set, i, count) for the blocks of a flat array, in parallel; the last count
// may be less than kLanes. f is copied, so that what it captures by value stays in registers.
template <class F>
void for_blocks(int64_t numel, const F& f) {
  const int64_t blocks = (numel + kLanes - 1) / kLanes;
  torch::stable::parallel_for(0, blocks, 2048, [&](int64_t begin, int64_t end) {
    with_isa([&](auto isa) {
      const F block = f;
      const int64_t last = std::min(numel, end * kLanes);
      int64_t i = begin * kLanes;
      for (; i + kLanes <= last; i += kLanes) block(isa, i, kLanes);
      if (i < last) block(isa, i, last - i);
    });
  });
}

// The bits of one block of a mask of one bit per element.
CNNKERNELS_INLINE void store_bits(unsigned bits, uint8_t* mask, int64_t count) {
  mask[0] = static_cast<uint8_t>(bits);
  if (count > 8) mask[1] = static_cast<uint8_t>(bits >> 8);
}
CNNKERNELS_INLINE unsigned load_bits(const uint8_t* mask, int64_t count) {
  return mask[0] | (count > 8 ? unsigned{mask[1]} << 8 : 0);
}

}  // namespace cnnkernels
