// wgmma's operands in shared memory: K-major rows of 32, 64 or 128 bytes (the span of the swizzle
// that TMA or a producer warp wrote them with), in groups of 8.
#pragma once

#include <cstdint>

#include "plan/host_device.h"

namespace cnnkernels::plan {

// Where the byte lies that would be at `address` without swizzle: in every span of 8 x 128 bytes
// the 16-byte chunks of line i (of 128 bytes) change places by an exclusive or with i.
CNNKERNELS_HD constexpr uint32_t swizzled(uint32_t address, int span) {
  return address ^ (address >> 7 & (span / 16 - 1)) << 4;
}

// An operand whose first row is at `address` (a multiple of 16) and whose groups of 8 rows are
// `group_bytes` apart (too). The hardware swizzles the final address, so `address` may be any row
// of a buffer that starts at a multiple of 1024: a shifted window. Bits 0-13: address / 16; 16-29:
// leading distance, not used with a swizzle; 32-45: group_bytes / 16; 49-51: offset, 0; 62-63:
// swizzle.
CNNKERNELS_HD constexpr uint64_t operand_descriptor(uint32_t address, int row_bytes,
                                                    uint32_t group_bytes) {
  const uint64_t layout = row_bytes == 128 ? 1 : row_bytes == 64 ? 2 : 3;
  return (uint64_t(address & 0x3FFFF) >> 4) | (1ull << 16) | (uint64_t(group_bytes >> 4) << 32) |
         (layout << 62);
}

}  // namespace cnnkernels::plan
