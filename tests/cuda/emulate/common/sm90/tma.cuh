#pragma once
#include "emulator.h"

namespace cnnkernels::sm90 {

inline void prefetch_tensor_map(const CUtensorMap*) {}
inline void tma_load_2d(uint32_t to, const CUtensorMap* map, uint32_t barrier, int a, int b) {
  emulator::load(to, map, barrier, {a, b});
}
inline void tma_load_3d(uint32_t to, const CUtensorMap* map, uint32_t barrier, int a, int b,
                        int c) {
  emulator::load(to, map, barrier, {a, b, c});
}
inline void tma_load_4d(uint32_t to, const CUtensorMap* map, uint32_t barrier, int a, int b, int c,
                        int d) {
  emulator::load(to, map, barrier, {a, b, c, d});
}
inline void tma_load_im2col(uint32_t to, const CUtensorMap* map, uint32_t barrier, int c, int w,
                            int h, int n, int offset_w, int offset_h) {
  emulator::load(to, map, barrier, {c, w, h, n}, {offset_w, offset_h});
}
inline void tma_prefetch_4d(const CUtensorMap*, int, int, int, int) {}
inline void tma_store_2d(const CUtensorMap* map, uint32_t from, int a, int b) {
  emulator::store(map, from, {a, b});
}
inline void tma_store_3d(const CUtensorMap* map, uint32_t from, int a, int b, int c) {
  emulator::store(map, from, {a, b, c});
}
inline void tma_store_4d(const CUtensorMap* map, uint32_t from, int a, int b, int c, int d) {
  emulator::store(map, from, {a, b, c, d});
}
inline void tma_store_commit() { emulator::stores().commit(); }
template <int kPending>
void tma_store_wait_read() {
  emulator::stores().wait(kPending);
}
template <int kPending>
void tma_store_wait() {
  emulator::stores().wait(kPending);
}

}  // namespace cnnkernels::sm90
