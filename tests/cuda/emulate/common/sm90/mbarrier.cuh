// Host versions of csrc/common/sm90/mbarrier.cuh.
#pragma once

#include "machine.h"

namespace cnnkernels::sm90 {

inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(static_cast<const uint8_t*>(p) - shared_raw) +
         machine::kFirstAddress;
}
inline machine::Mbarrier& barrier_at(uint32_t address) {
  machine::shared_at(address, 8);
  return (*machine::barriers)[address / 8];
}
inline void mbarrier_init(uint32_t barrier, int count) {
  auto& b = barrier_at(barrier);
  b.expected = b.pending = count;
}
inline void fence_mbarrier_init() {}
inline void mbarrier_arrive(uint32_t barrier) {
  auto& b = barrier_at(barrier);
  std::unique_lock lock(b.mutex);
  if (b.expected == 0) machine::fail("arrival at a barrier that was not initialised");
  if (--b.pending == 0) {
    b.pending = b.expected, ++b.phase;
    b.changed.notify_all();
  }
}
inline void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  auto& b = barrier_at(barrier);
  std::unique_lock lock(b.mutex);
  if (parity > 1) machine::fail("a barrier's parity is 0 or 1");
  if (!b.changed.wait_for(lock, std::chrono::seconds(30), [&] { return (b.phase & 1) != parity; }))
    machine::fail("deadlock");
}
inline void fence_proxy_async() {}
inline void named_barrier_sync(int id, int threads) { machine::named[id].wait(threads); }
template <int kRegisters>
void setmaxnreg_dec() {}
template <int kRegisters>
void setmaxnreg_inc() {}

}  // namespace cnnkernels::sm90
