// Division of 31-bit numbers by a divisor fixed at launch: one multiply-high, one add, one shift.
#pragma once

#include <cstdint>

#include "plan/host_device.h"

namespace cnnkernels {

struct FastDiv {
  uint32_t divisor = 1, multiplier = 1, shift = 0;

  FastDiv() = default;
  explicit FastDiv(int64_t d) : divisor(static_cast<uint32_t>(d)) {
    while ((uint64_t{1} << shift) < divisor) ++shift;
    multiplier = static_cast<uint32_t>(
        (uint64_t{1} << 32) * ((uint64_t{1} << shift) - divisor) / divisor + 1);
  }
  // n / divisor for n < 2^31.
  CNNKERNELS_HD uint32_t quotient(uint32_t n) const {
#ifdef __CUDA_ARCH__
    return (__umulhi(n, multiplier) + n) >> shift;
#else
    return static_cast<uint32_t>(((uint64_t{n} * multiplier >> 32) + n) >> shift);
#endif
  }
  // Returns n / divisor and leaves n % divisor in n.
  CNNKERNELS_HD uint32_t split(uint32_t& n) const {
    const uint32_t q = quotient(n);
    n -= q * divisor;
    return q;
  }
};

}  // namespace cnnkernels
