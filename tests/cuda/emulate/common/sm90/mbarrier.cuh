#pragma once
#include "emulator.h"

namespace cnnkernels::sm90 {

inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(static_cast<const uint8_t*>(p) - shared_raw) +
         emulator::kSharedStart;
}
inline uint32_t dynamic_shared_memory() { return emulator::kSharedStart; }
inline void mbarrier_init(uint32_t address, int count) {
  if (address % 8) emulator::fail("a barrier off 8 bytes");
  emulator::shared(address, 8);
  emulator::block().barriers[address] = {count};
}
inline void fence_mbarrier_init() {}
inline void mbarrier_arrive(uint32_t address) {
  emulator::Barrier& b = emulator::barrier(emulator::block(), address);
  ++b.arrived;
  emulator::complete(b);
}
inline void mbarrier_arrive_expect_tx(uint32_t address, uint32_t bytes) {
  emulator::barrier(emulator::block(), address).bytes += bytes;
  mbarrier_arrive(address);
}
inline void mbarrier_wait(uint32_t address, uint32_t parity) {
  emulator::Barrier& b = emulator::barrier(emulator::block(), address);
  if (parity > 1) emulator::fail("a barrier's parity is 0 or 1");
  while ((b.phase & 1) == parity) emulator::yield();
  emulator::moved();
}
inline void fence_proxy_async() { ++emulator::block().fences[emulator::thread()]; }
inline void named_barrier_sync(int id, int threads) {
  emulator::meet(emulator::block().named[id], threads);
}
inline void named_barrier_arrive(int id, int threads) {
  emulator::arrive(emulator::block().named[id], threads);
}
template <int kRegisters>
void setmaxnreg_dec() {}
template <int kRegisters>
void setmaxnreg_inc() {}

struct RingPosition {
  int slot = 0;
  uint32_t parity = 0;
  void advance(int slots) {
    if (++slot == slots) slot = 0, parity ^= 1;
  }
  void skip(int count, int slots) {
    slot += count;
    parity ^= slot / slots & 1;
    slot %= slots;
  }
};

}  // namespace cnnkernels::sm90
