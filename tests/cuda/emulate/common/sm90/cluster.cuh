#pragma once
#include "emulator.h"

namespace cnnkernels::sm90 {

inline uint32_t cluster_rank() { return emulator::block().rank; }
inline void cluster_arrive() { emulator::cluster_arrive(); }
inline void cluster_wait() { emulator::cluster_wait(); }
inline uint32_t cluster_address(uint32_t address, uint32_t rank) {
  return address | (rank + 1) << 24;
}
inline float4 cluster_load(uint32_t remote) {
  emulator::Block& peer = emulator::block_of(static_cast<int>(remote >> 24) - 1);
  if (peer.threads == 0) emulator::fail("reads a block that has exited");
  float4 v;
  std::memcpy(&v, emulator::shared(peer, remote & 0xffffff, 16), 16);
  return v;
}
inline void shared_store(uint32_t address, float4 v) {
  if (address % 16) emulator::fail("a vector off 16 bytes");
  std::memcpy(emulator::stored(address, 16), &v, 16);
}
inline void wait_for_previous_kernel() {}
inline void start_next_kernel() {}

}  // namespace cnnkernels::sm90
