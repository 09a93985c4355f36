#include "emulator.h"

#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cnnkernels {
alignas(1024) uint8_t
    shared_raw[emulator::kMaxCluster * (emulator::kSharedBytes + emulator::kGuard)];
}

namespace emulator {
namespace {

struct Fiber {
  ucontext_t context;  // where it starts; from then on `resume`, which needs no system call
  jmp_buf resume;
  bool started = false;
  std::unique_ptr<char[]> stack;
  int block = 0, thread = 0;
  bool done = true;
  Groups stores, products;
};

std::vector<Fiber> fibers;
std::vector<Block> blocks;  // of the cluster that runs
Fiber* current = nullptr;
jmp_buf scheduler;
Work kernel_body;
Works loads;         // issued, not done
uint64_t moves = 0;  // of all fibers so far
uint32_t random_state = 1;
std::vector<TensorMap> maps;
Meeting cluster;  // its barrier, and for each thread the round it has arrived in
std::vector<uint64_t> cluster_rounds;
int cluster_threads = 0;

uint32_t random_number() { return (random_state = random_state * 1664525 + 1013904223) >> 8; }
int thread_of_cluster() { return current->block * blockDim.x + current->thread; }
void finish_cluster_round() {
  if (cluster.arrived == cluster_threads) cluster.arrived = 0, ++cluster.round;
}

void enter(Fiber& f) {
  if (_setjmp(scheduler)) return;
  if (f.started) _longjmp(f.resume, 1);
  f.started = true;
  setcontext(&f.context);
}

void fiber_main() {
  kernel_body();
  if (!current->stores.open.empty() || !current->stores.committed.empty())
    fail("exits while a store may still read its shared memory");
  if (!current->products.committed.empty()) fail("exits with a wgmma in flight");
  current->done = true;
  --blocks[current->block].threads, --cluster_threads;
  finish_cluster_round();
  moved();
  _longjmp(scheduler, 1);
}

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
  uint8_t* p = shared(to, swizzled(address, m.swizzle), size);
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

void fail(const std::string& what) {
  std::printf("emulator: %s (block %u, thread %d)\n", what.c_str(),
              current ? blocks[current->block].index : 0, current ? current->thread : -1);
  std::fflush(stdout);
  std::_Exit(5);
}
Block& block() { return blocks[current->block]; }
Block& block_of(int rank) {
  if (rank < 0 || rank >= static_cast<int>(blocks.size())) fail("no such block in the cluster");
  return blocks[rank];
}
int thread() { return current->thread; }
Groups& stores() { return current->stores; }
Groups& products() { return current->products; }
void yield() {
  if (!_setjmp(current->resume)) _longjmp(scheduler, 1);
}
void moved() { ++moves; }

uint8_t* shared(Block& b, uint32_t address, uint32_t bytes) {
  if (address < kSharedStart || address + bytes > kSharedStart + b.shared_bytes)
    fail("a shared-memory address outside the launch's");
  return b.shared + (address - kSharedStart);
}
Barrier& barrier(Block& b, uint32_t address) {
  const auto found = b.barriers.find(address);
  if (found == b.barriers.end()) fail("no barrier at this address");
  return found->second;
}
void complete(Barrier& b) {
  moved();
  if (b.arrived > b.count) fail("more arrivals than a barrier counts");
  if (b.arrived == b.count && b.bytes == 0) ++b.phase, b.arrived = 0;
}
bool arrive(Meeting& meeting, int threads) {
  moved();
  if (++meeting.arrived < threads) return false;
  meeting.arrived = 0, ++meeting.round;
  return true;
}
void meet(Meeting& meeting, int threads) {
  const uint64_t round = meeting.round;
  if (arrive(meeting, threads)) return;
  while (meeting.round == round) yield();
}
void cluster_arrive() {
  if (cluster_rounds[thread_of_cluster()] > cluster.round)
    fail("arrives twice at the cluster's barrier");
  cluster_rounds[thread_of_cluster()] = cluster.round + 1;
  ++cluster.arrived;
  finish_cluster_round();
  moved();
}
void cluster_wait() {
  while (cluster.round < cluster_rounds[thread_of_cluster()]) yield();
}

void Groups::commit() {
  committed.push_back(std::move(open));
  open.clear();
}
void Groups::wait(int pending) {
  for (; static_cast<int>(committed.size()) > pending; committed.pop_front())
    for (const Work& work : committed.front()) work();
}

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
  loads.push_back([=] {
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
  stores().open.push_back([=] {
    const int size = m.element_bytes();
    uint32_t count = 1;
    for (int d = 0; d < m.rank; ++d) count *= m.box[d];
    for (uint32_t i = 0; i < count; ++i) {
      const int64_t offset = tiled_offset(m, at, i);
      if (offset >= 0)
        std::memcpy(m.base + offset, shared(*b, swizzled(from + i * size, m.swizzle), size), size);
    }
  });
}

namespace {

void start_block(Block& b, int index, int rank, int shared_bytes) {
  b.index = index, b.rank = rank, b.threads = blockDim.x;
  b.shared = cnnkernels::shared_raw + rank * (kSharedBytes + kGuard);
  b.shared_bytes = shared_bytes;
  for (int i = 0; i < shared_bytes; ++i) b.shared[i] = random_number();
  std::memset(b.shared + shared_bytes, 0xff, kGuard);
}
void end_block(const Block& b) {
  for (uint32_t i = 0; i < kGuard; ++i)
    if (b.shared[b.shared_bytes + i] != 0xff) fail("writes past its shared memory");
  for (const auto& [id, meeting] : b.named)
    if (meeting.arrived) fail("arrivals at a named barrier that nobody waited for");
}
void start_fiber(Fiber& f, int i) {
  constexpr size_t kStack = 128 << 10;
  f.block = i / blockDim.x, f.thread = i % blockDim.x, f.done = f.started = false;
  if (!f.stack) f.stack.reset(new char[kStack]);
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = f.stack.get(), f.context.uc_stack.ss_size = kStack;
  makecontext(&f.context, fiber_main, 0);
}
// Every fiber that is awake, up to where it waits; how many are left.
int run_round(int threads) {
  int left = 0;
  for (int i = 0; i < threads; ++i) {
    if (fibers[i].done) continue;
    ++left;
    current = &fibers[i];
    if (blocks[current->block].warps[current->thread / 32].asleep) continue;
    threadIdx = {unsigned(current->thread), 0, 0};
    blockIdx = {blocks[current->block].index, 0, 0};
    enter(*current);
  }
  current = nullptr;
  return left;
}
// Some loads, at least one where `stuck`; whether there were any.
bool do_loads(bool stuck) {
  bool any = false;
  for (size_t i = 0; i < loads.size();)
    if (stuck || random_number() % 4 == 0) {
      const Work work = std::move(loads[i]);
      loads.erase(loads.begin() + i);
      work();
      stuck = false, any = true;
    } else {
      ++i;
    }
  return any;
}
bool wake_all() {
  bool any = false;
  for (Block& b : blocks)
    for (Warp& warp : b.warps) any |= warp.asleep, warp.asleep = false;
  return any;
}
void fall_asleep() {
  for (Block& b : blocks)
    for (Warp& warp : b.warps) warp.asleep = random_number() % 2;
}

}  // namespace

void run(int grid, int cluster_size, int threads, int shared_bytes, Work kernel) {
  if (shared_bytes > static_cast<int>(kSharedBytes)) fail("more shared memory than a block has");
  if (grid % cluster_size) fail("a grid that is no multiple of its cluster");
  kernel_body = std::move(kernel);
  gridDim = dim3(grid), blockDim = dim3(threads);
  const int all = cluster_size * threads;
  for (int first = 0; first < grid; first += cluster_size) {
    blocks.assign(cluster_size, {});
    for (int i = 0; i < cluster_size; ++i) start_block(blocks[i], first + i, i, shared_bytes);
    cluster = {}, cluster_rounds.assign(all, 0), cluster_threads = all;
    if (static_cast<int>(fibers.size()) < all) fibers.resize(all);
    for (int i = 0; i < all; ++i) start_fiber(fibers[i], i);
    for (;;) {
      const uint64_t before = moves;
      if (run_round(all) == 0) break;
      const bool moved = moves != before || wake_all();
      if (!do_loads(!moved) && !moved) fail("deadlock");
      if (random_number() % 16 == 0) fall_asleep();
    }
    if (!loads.empty()) fail("loads that nothing waited for");
    for (const Block& b : blocks) end_block(b);
  }
}

}  // namespace emulator

// The runtime functions that the launchers and the check program call.
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
