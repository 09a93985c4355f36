// A small direct-mapped cache of values that are pure functions of their key: an entry is simply
// overwritten by the next key of its slot. Made to be thread_local, so that it needs no lock.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace cnnkernels::plan {

template <size_t kWords>
uint64_t hash_words(const std::array<uint64_t, kWords>& words) {
  uint64_t h = 0;
  for (const uint64_t word : words) {
    h = (h ^ word) * 0x9E3779B97F4A7C15ull;
    h ^= h >> 32;
  }
  return h;
}

template <class Key, class Value, size_t kSlots>
class DirectCache {
 public:
  // The value of `key`; make() where it is not the slot's last one. Valid until the next call.
  template <class Make>
  const Value& get(const Key& key, uint64_t hash, const Make& make) {
    if (!slots_) slots_ = std::make_unique<std::array<Slot, kSlots>>();
    Slot& slot = (*slots_)[hash % kSlots];
    if (!slot.used || !(slot.key == key)) {
      slot.used = false;
      slot.value = make();
      slot.key = key, slot.used = true;
    }
    return slot.value;
  }

 private:
  struct Slot {
    Key key{};
    Value value{};
    bool used = false;
  };
  std::unique_ptr<std::array<Slot, kSlots>> slots_;
};

}  // namespace cnnkernels::plan
