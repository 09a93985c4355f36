// Tensor maps, the copies that TMA makes with them, and the runtime functions that launchers and
// check programs call.
#include <cstdlib>

#include "emulator.h"

namespace emulator {
namespace {

std::vector<TensorMap> maps;

// Element offsets of box element i: from the box's start in memory, or -1 outside the tensor.
int64_t tiled_offset(const TensorMap& m, const std::vector<int>& at, uint32_t i) {
  int64_t offset = 0;
  for (int d = 0; d < m.rank; ++d) {
    const int64_t x = at[d] + static_cast<int64_t>(i % m.box[d]);
    i /= m.box[d];
    if (x < 0 || x >= static_cast<int64_t>(m.dims[d])) return -1;
    offset += x * (d ? static_cast<int64_t>(m.strides[d - 1]) : m.element_bytes());
  }
  return offset;
}

const TensorMap& map_of(const CUtensorMap* map) {
  uint64_t id;
  std::memcpy(&id, map, 8);
  if (id == 0 || id > maps.size()) fail("not an encoded tensor map");
  return maps[id - 1];
}

void put(const TensorMap& m, Block& to, uint32_t address, int64_t offset) {
  const int size = m.element_bytes();
  const uint32_t at = swizzled(address, m.swizzle);
  uint8_t* p = shared(to, at, size);
  to.writers[(at - kSharedStart) / 16] = {};
  if (offset < 0)
    std::memset(p, 0, size);
  else
    std::memcpy(p, m.base + offset, size);
  if (!m.round_to_tf32 || size != 4) return;
  uint32_t bits;  // to nearest, ties to even
  std::memcpy(&bits, p, 4);
  bits = (bits + 0xfff + (bits >> 13 & 1)) & ~0x1fffu;
  std::memcpy(p, &bits, 4);
}

}  // namespace

void register_map(CUtensorMap* map, const TensorMap& m) {
  const int size = m.element_bytes();
  if (reinterpret_cast<uintptr_t>(m.base) % 16) fail("a tensor off 16 bytes");
  if (static_cast<int>(m.box[0]) * size > m.swizzle) fail("a box wider than its swizzle");
  for (int d = 0; d < m.rank; ++d) {
    if (d + 1 < m.rank && m.strides[d] % 16) fail("a stride off 16 bytes");
    if (!m.im2col && (m.box[d] == 0 || m.box[d] > 256)) fail("a box side over 256");
  }
  maps.push_back(m);
  const uint64_t id = maps.size();
  std::memset(map, 0, sizeof *map), std::memcpy(map, &id, 8);
}

void load(uint32_t to, const CUtensorMap* map, uint32_t address, std::vector<int> at,
          std::vector<int> offsets) {
  const TensorMap m = map_of(map);
  Block* const b = &block();
  if (to % 128) fail("a load to an address off 128 bytes");
  if (static_cast<int>(at.size()) != m.rank || m.im2col == offsets.empty())
    fail("a load whose form is not its map's");
  barrier(*b, address);
  add_load([=] {
    const int size = m.element_bytes();
    uint32_t count = 1, done = 0;
    for (int d = 0; d < (m.im2col ? 2 : m.rank); ++d) count *= m.box[d];
    if (m.im2col) {  // pixels in output order, each shifted by the tap's offsets
      int w = at[1], h = at[2], n = at[3];
      for (uint32_t pixel = 0; pixel < m.box[1]; ++pixel) {
        const int64_t x = w + offsets[0], y = h + offsets[1];
        const bool inside = x >= 0 && x < static_cast<int64_t>(m.dims[1]) && y >= 0 &&
                            y < static_cast<int64_t>(m.dims[2]) && n < static_cast<int>(m.dims[3]);
        for (uint32_t c = at[0]; c < at[0] + m.box[0]; ++c, ++done)
          put(m, *b, to + done * size,
              inside && c < m.dims[0] ? static_cast<int64_t>(n * m.strides[2] + y * m.strides[1] +
                                                             x * m.strides[0] + c * size)
                                      : -1);
        w += m.element_strides[1];
        if (w > static_cast<int>(m.dims[1]) - 1 + m.upper[0])
          w = m.lower[0], h += m.element_strides[2];
        if (h > static_cast<int>(m.dims[2]) - 1 + m.upper[1]) h = m.lower[1], ++n;
      }
    } else {
      for (; done < count; ++done) put(m, *b, to + done * size, tiled_offset(m, at, done));
    }
    Barrier& full = barrier(*b, address);
    full.bytes -= int64_t{count} * size;
    complete(full);
  });
}

void store(const CUtensorMap* map, uint32_t from, std::vector<int> at) {
  const TensorMap m = map_of(map);
  Block* const b = &block();
  if (from % 128) fail("a store from an address off 128 bytes");
  if (static_cast<int>(at.size()) != m.rank) fail("a store whose form is not its map's");
  const int size = m.element_bytes();
  uint32_t count = 1;
  for (int d = 0; d < m.rank; ++d) count *= m.box[d];
  for (uint32_t i = 0; i < count * size; i += 16)
    if (!fenced(*b, swizzled(from + i, m.swizzle))) fail("stores by TMA what has not been fenced");
  stores().open.push_back([=] {
    for (uint32_t i = 0; i < count; ++i) {
      const int64_t offset = tiled_offset(m, at, i);
      if (offset >= 0)
        std::memcpy(m.base + offset, shared(*b, swizzled(from + i * size, m.swizzle), size), size);
    }
  });
}

}  // namespace emulator

extern "C" {
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  return *value = 3, cudaSuccess;  // multiprocessors: several tiles each
}
cudaError_t cudaMalloc(void** p, size_t bytes) {
  return *p = std::aligned_alloc(256, (bytes + 255) / 256 * 256), cudaSuccess;
}
cudaError_t cudaFree(void* p) { return std::free(p), cudaSuccess; }
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
cudaError_t cudaMemset(void* p, int value, size_t bytes) {
  return std::memset(p, value, bytes), cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t error) { return error ? "an error" : "no error"; }
}
