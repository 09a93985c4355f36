// Host version of csrc/common/sm90/tma.cuh: tiled stores from 128-byte swizzled rows, clipped. They
// read shared memory when the issuing thread waits for them, not before.
#pragma once

#include <cuda.h>

#include "machine.h"

namespace cnnkernels::sm90 {

inline thread_local std::vector<std::function<void()>> pending_stores;

inline void tma_store_3d(const CUtensorMap* map, uint32_t shared, int c0, int c1, int c2) {
  if (shared % 128) machine::fail("a TMA source is not aligned to 128 bytes");
  pending_stores.push_back([=, map = *map] {
    for (uint32_t row = 0; row < map.box[1]; ++row)
      for (uint32_t c = 0; c < map.box[0]; ++c) {
        const uint64_t x = c0 + c, y = c1 + row, z = c2;
        if (x >= map.dims[0] || y >= map.dims[1] || z >= map.dims[2]) continue;
        const uint32_t address = shared + row * 128 + c * map.element_bytes;
        const uint8_t* from =
            machine::shared_at(machine::swizzle(address, 128) & ~15u, 16) + address % 16;
        std::memcpy(map.base + x * map.element_bytes + y * map.strides[0] + z * map.strides[1],
                    from, map.element_bytes);
      }
  });
}
inline void tma_store_commit() {}
template <int kPending>
void tma_store_wait_read() {
  static_assert(kPending == 0);
  for (auto& store : pending_stores) store();
  pending_stores.clear();
}
template <int kPending>
void tma_store_wait() {
  tma_store_wait_read<kPending>();
}

}  // namespace cnnkernels::sm90
