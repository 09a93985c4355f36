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

// d^exponent in the precision of A: float for results that are rounded to 16 bits, double for fp32
// results, so that neither the sum nor the power costs them a bit. Absolute error of log2: 1.5e-8
// and 1.5e-12, relative error of exp2: 1e-7 and 6e-11 (polynomials through Chebyshev nodes).
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
  using Bits = uint64_t;
  double exponent;
  Bits low, span;

  explicit Power(double e) : exponent(e) {
    const double reach = std::fabs(e) * 1020. > 1000. ? 1000. / std::fabs(e) : 1020.;
    low = bits_as<Bits>(std::exp2(-reach));
    span = bits_as<Bits>(std::exp2(reach)) - low;
  }
  CNNKERNELS_INLINE bool slow(double d) const { return bits_as<Bits>(d) - low > span; }
  CNNKERNELS_INLINE double fast(double d) const {
    // Logical shift (an arithmetic one of 64 bits does not exist in AVX2) of the biased exponent,
    // turned into a double by the bits of 2^52.
    const uint64_t bits = bits_as<uint64_t>(d) + (0x3ff0000000000000u - 0x3fe6a09e667f3bcdu);
    const uint64_t e = bits >> 52;  // biased by 1023
    const double exponent_of_d = bits_as<double>(e | 0x4330000000000000u) - (0x1p52 + 1023.);
    const double f = bits_as<double>((bits & 0x000fffffffffffffu) + 0x3fe6a09e667f3bcdu) - 1.;
    double p = -0.06806326077999382;
    p = p * f + 0.13113880559248595;
    p = p * f + -0.13479003960189784;
    p = p * f + 0.13062872064163708;
    p = p * f + -0.14252322566208214;
    p = p * f + 0.16018226090787918;
    p = p * f + -0.1804327007076007;
    p = p * f + 0.20610869618117805;
    p = p * f + -0.2404466261878471;
    p = p * f + 0.28853876229191244;
    p = p * f + -0.3606737897805336;
    p = p * f + 0.48089834907325618;
    p = p * f + -0.72134752034304161;
    p = p * f + 1.4426950408862023;
    const double t = exponent * (p * f + exponent_of_d);
    const double shifted = t + 0x1.8p52;
    const double r = t - (shifted - 0x1.8p52);
    double q = 1.5303699001378845e-05;
    q = q * r + 0.00015469729140704658;
    q = q * r + 0.0013333478480888061;
    q = q * r + 0.0096180256135980358;
    q = q * r + 0.055504109063177154;
    q = q * r + 0.24022651213495422;
    q = q * r + 0.69314718055683411;
    q = q * r + 0.99999999995956224;
    return bits_as<double>(bits_as<uint64_t>(q) + (bits_as<uint64_t>(shifted) << 52));
  }
};

// The precision of an LRN's sums and powers for elements of T.
template <class T>
using LrnReal = std::conditional_t<std::is_same_v<T, float>, double, float>;

}  // namespace cnnkernels
