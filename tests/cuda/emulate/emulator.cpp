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
uint8_t* stored(uint32_t address, uint32_t bytes) {
  Block& b = block();
  uint8_t* p = shared(b, address, bytes);
  b.writers[(address - kSharedStart) / 16] = {thread(), b.fences[thread()]};
  return p;
}
bool fenced(const Block& b, uint32_t address) {
  const Writer& w = b.writers[(address - kSharedStart) / 16];
  return w.thread < 0 || b.fences[w.thread] != w.fences;
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

void add_load(Work load) { loads.push_back(std::move(load)); }

void Groups::commit() {
  committed.push_back(std::move(open));
  open.clear();
}
void Groups::wait(int pending) {
  for (; static_cast<int>(committed.size()) > pending; committed.pop_front())
    for (const Work& work : committed.front()) work();
}

namespace {

void start_block(Block& b, int index, int rank, int shared_bytes) {
  b.index = index, b.rank = rank, b.threads = blockDim.x;
  b.shared = cnnkernels::shared_raw + rank * (kSharedBytes + kGuard);
  b.shared_bytes = shared_bytes, b.writers.resize(shared_bytes / 16 + 1);
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
