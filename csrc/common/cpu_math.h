// Arithmetic of the CPU kernels that compilers vectorise: conversions of fp16 and bf16 to and from
// fp32 without branches, and d^e by polynomials. Everything is inlined into the callers' clones.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/cpu.h"

#define CNNKERNELS_INLINE inline __attribute__((always_inline))

namespace cnnkernels {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <class To, class From>
CNNKERNELS_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

CNNKERNELS_INLINE float to_f32(float v) { return v; }
CNNKERNELS_INLINE float to_f32(BFloat16 v) { return bits_as<float>(uint32_t{v.x} << 16); }
CNNKERNELS_INLINE float to_f32(Half v) {
  // The exponent and mantissa shifted into fp32's place are 2^112 too small, subnormals included;
  // infinity and NaN land at 2^16 and above.
  const uint32_t magnitude = (uint32_t{v.x} & 0x7fff) << 13;
  const float scaled = bits_as<float>(magnitude) * 0x1p112f;
  const uint32_t bits =
      magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : bits_as<uint32_t>(scaled);
  return bits_as<float>(bits | (uint32_t{v.x} & 0x8000) << 16);
}

template <class T>
T from_f32(float v);
template <>
CNNKERNELS_INLINE float from_f32<float>(float v) {
  return v;
}
template <>
CNNKERNELS_INLINE BFloat16 from_f32<BFloat16>(float v) {
  const uint32_t bits = bits_as<uint32_t>(v);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to nearest, ties to even
  BFloat16 out;
  out.x = static_cast<uint16_t>(v != v ? 0x7fc0 : rounded);
  return out;
}
template <>
CNNKERNELS_INLINE Half from_f32<Half>(float v) {
  const uint32_t bits = bits_as<uint32_t>(v);
  const uint32_t magnitude = bits & 0x7fffffff;
  // Normal results: rebias the exponent and round to nearest, ties to even; overflow becomes
  // infinity.
  uint32_t normal = (magnitude - 0x38000000u + 0xfff + (magnitude >> 13 & 1)) >> 13;
  normal = magnitude >= 0x477ff000u ? 0x7c00 : normal;
  // Subnormal results: adding 0.5 aligns the last kept bit with fp32's, and the adder rounds.
  const uint32_t subnormal = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude > 0x7f800000u ? 0x7e00 : half;
  Half out;
  out.x = static_cast<uint16_t>(half | (bits >> 16 & 0x8000));
  return out;
}

// v * d^exponent for sums d in A. A = float, for results that are rounded to 16 bits: relative
// error about 2e-7. A = double, for fp32 results: about one rounding. The polynomials go through
// Chebyshev nodes; whatever is not an ordinary number with an ordinary result is `slow` and left to
// std::pow.
template <class A>
struct Power;

template <>
struct Power<float> {
  using Bits = uint32_t;
  float exponent;
  Bits low, span;

  // fast() holds for d in [low, low + span] as bit patterns: normal numbers whose result is normal.
  explicit Power(double e) : exponent(static_cast<float>(e)) {
    const double reach = std::fabs(e) * 126. > 125. ? 125. / std::fabs(e) : 126.;
    low = bits_as<Bits>(static_cast<float>(std::exp2(-reach)));
    span = bits_as<Bits>(static_cast<float>(std::exp2(reach))) - low;
  }
  CNNKERNELS_INLINE bool slow(float d) const { return bits_as<Bits>(d) - low > span; }
  CNNKERNELS_INLINE float times(float v, float d) const { return v * fast(d); }
  CNNKERNELS_INLINE float fast(float d) const {
    const int32_t bits = bits_as<int32_t>(d) - 0x3f3504f3;  // sqrt(1/2): the mantissa's middle
    const int32_t e = bits >> 23;
    const float f = bits_as<float>(bits_as<int32_t>(d) - (e << 23)) - 1.f;
    float p = 0.12310983891253549f;
    p = p * f + -0.20586213498544528f;
    p = p * f + 0.21607828890968769f;
    p = p * f + -0.23916985319444756f;
    p = p * f + 0.28790325220013391f;
    p = p * f + -0.36069326896280046f;
    p = p * f + 0.48091075371261116f;
    p = p * f + -0.72134746824396545f;
    p = p * f + 1.4426950035669874f;
    const float t = exponent * (p * f + static_cast<float>(e));
    const float shifted = t + 0x1.8p23f;  // the integer part in the low bits
    const float r = t - (shifted - 0x1.8p23f);
    float q = 0.001339086336353527f;
    q = q * r + 0.0096760319182559815f;
    q = q * r + 0.055503571142220938f;
    q = q * r + 0.24022107485309679f;
    q = q * r + 0.69314718802622732f;
    q = q * r + 1.0000000754548972f;
    return bits_as<float>(bits_as<uint32_t>(q) + (bits_as<uint32_t>(shifted) << 23));
  }
};

template <>
struct Power<double> {
  using Bits = uint32_t;
  double exponent;
  float high, low_part;  // exponent = high + low_part
  Bits low, span;

  explicit Power(double e)
      : exponent(e),
        high(static_cast<float>(e)),
        low_part(static_cast<float>(e - static_cast<double>(static_cast<float>(e)))) {
    const double reach = std::fabs(e) * 126. > 125. ? 125. / std::fabs(e) : 126.;
    low = bits_as<Bits>(static_cast<float>(std::exp2(-reach)));
    span = bits_as<Bits>(static_cast<float>(std::exp2(reach))) - low;
  }
  CNNKERNELS_INLINE bool slow(double d) const {
    return bits_as<Bits>(static_cast<float>(d)) - low > span;
  }
  // What rounding d to fp32 changes in the result's logarithm (base 2).
  CNNKERNELS_INLINE float tail(double d) const {
    const double rounded = static_cast<float>(d);
    return static_cast<float>(exponent * 1.4426950408889634 * (d - rounded) / rounded);
  }
  // fp32 from here on, arranged so that no large intermediate is rounded: log2 in integer and
  // fraction, and v * 2^n * (1 + r q) as one fused multiply-add. What is left: half an ulp each of
  // d (times the exponent) and of the result, and a third of one of the polynomials.
  // kExact: with d's tail, and with what rounding the logarithm's product loses.
  template <bool kExact = false>
  CNNKERNELS_INLINE float times(float v, float d, float tail = 0.f) const {
    const int32_t bits = bits_as<int32_t>(d);
    const int32_t e = (bits - 0x3f3504f3) >> 23;  // sqrt(1/2): the mantissa's middle
    const float f = bits_as<float>(bits - (e << 23)) - 1.f;
    // In pairs, for short chains of dependent operations; the leading term last, for its accuracy.
    const float f2 = f * f, f4 = f2 * f2;
    const float p3 = (0.48091075371261116f + -0.36069326896280046f * f) +
                     (0.28790325220013391f + -0.23916985319444756f * f) * f2;
    const float p7 = (0.21607828890968769f + -0.20586213498544528f * f) + 0.12310983891253549f * f2;
    const float p = (-0.72134746824396545f + (p3 + p7 * f4) * f) * f + 1.4426950035669874f;
    const float fraction = p * f;
    const float whole = static_cast<float>(e);
    const float shifted = high * (fraction + whole) + 0x1.8p23f;  // rounds; integer in the low bits
    const float n = shifted - 0x1.8p23f;
    float r = std::fma(high, whole, -n);  // exact but for high's own bits
    r = low_part * whole + r;
    r = high * fraction + r;
    if constexpr (kExact) r += high * std::fma(p, f, -fraction) + tail;
    const float r2 = r * r;
    const float q2 =
        (0.0555035493f + 0.00961808067f * r) + (0.00133920174f + 0.000154541621f * r) * r2;
    const float q = (0.240226508f + q2 * r) * r + 0.693147188f;
    const float scaled = v * bits_as<float>((bits_as<int32_t>(shifted) << 23) + 0x3f800000);
    return scaled * (q * r) + scaled;
  }
};

}  // namespace cnnkernels
