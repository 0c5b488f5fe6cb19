#include "emulator.h"

#include <dlfcn.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#undef threadIdx
#undef blockIdx
#undef blockDim

// AddressSanitizer is told of every change of stacks. For ThreadSanitizer, which sees each fiber as a thread, this file
// is compiled without -fsanitize=thread but with -DEMULATOR_TSAN: only barriers order threads, and what the emulator
// reads and writes in a kernel's name it reports by hand.
#if defined(__SANITIZE_ADDRESS__)
#define EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef EMULATOR_TSAN
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_read16(void*);
extern "C" void __tsan_write16(void*);
#endif

// Saves the registers that a called function must keep (x86-64, System V) and goes on at another stack.
#if !defined(__x86_64__)
#error "the emulator switches stacks on x86-64 only"
#endif
extern "C" void emulator_switch(void** from_stack, void* to_stack);
asm(R"(
.text
.globl emulator_switch
.type emulator_switch,@function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch,.-emulator_switch
)");

namespace emulator {
namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kSharedBytes = 256 * 1024;
constexpr size_t kMostShared = 227 * 1024;  // of a block on the largest GPU
constexpr int kMain = -1;
constexpr unsigned kWarp = 32, kMostThreads = 1024;  // of a warp; of a block

uint64_t order_seed = 0;
int machine_threads = 1;
Driver driver = nullptr;
std::atomic<int64_t> blocks_run, switches_made, warp_words_run;

unsigned char* map_memory(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return static_cast<unsigned char*>(memory);
}

void unmap_memory(unsigned char* memory, size_t bytes) {
#ifdef EMULATOR_ASAN
  ASAN_UNPOISON_MEMORY_REGION(memory, bytes);  // somebody else gets these addresses
#endif
  munmap(memory, bytes);
}

std::string describe(const Place& place) {
  std::ostringstream text;
  text << place.word << " at " << place.file << ":" << place.line;
  return text.str();
}
bool same(const Place& a, const Place& b) { return a.line == b.line && a.file == b.file && a.word == b.word; }

struct Copy {
  void* to;
  const void* from;
  bool copy;
};

// First in, first out, in place: ThreadSanitizer sees every call of an allocator or of memmove, also the emulator's
// own.
template <class T, unsigned capacity>
class Ring {
 public:
  void clear() { first_ = last_ = 0; }
  unsigned size() const { return last_ - first_; }
  T& operator[](unsigned i) { return items_[(first_ + i) % capacity]; }
  void push(const T& item) {
    if (size() == capacity) throw std::length_error("emulator: a ring is full");
    items_[last_++ % capacity] = item;
  }
  T pop() { return items_[first_++ % capacity]; }

 private:
  T items_[capacity];
  unsigned first_ = 0, last_ = 0;
};

// Asynchronous copies of one thread: they land when a wait covers them, so that a wait left out shows.
struct Copies {
  Ring<Copy, 1024> under_way;
  Ring<unsigned, 16> groups;  // how many of `under_way` each committed group has
  unsigned uncommitted = 0;

  void clear() { under_way.clear(), groups.clear(), uncommitted = 0; }
};

struct Fiber {
  Index thread;
  unsigned char* stack = nullptr;
  void* stack_pointer = nullptr;
  bool done = false;
  Place waits{};
  Copies copies;
  void* sanitizer = nullptr;  // ASan: its fake stack; TSan: its fiber
};

// Lanes of a warp at the same word.
struct Meeting {
  unsigned mask = 0, arrived = 0;
  void* brought[kWarp];
  Together together = nullptr;
  Place place{};
};

// One machine thread, and the block that it runs.
struct Worker {
  Index block, size;
  std::vector<std::unique_ptr<Fiber>> fibers;
  Ring<int, kMostThreads> ready;  // first in, first out; or drawn at random
  int running = kMain, alive = 0;
  std::vector<int> at_barrier;
  Place barrier{};
  std::vector<Meeting> meetings;  // one for each warp
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  const std::function<void()>* body = nullptr;
  const char* kernel = "";
  std::string error;
  std::mt19937_64 random;
  int64_t switches = 0, warp_words = 0;
  void* main_stack = nullptr;
  void* main_sanitizer = nullptr;
  const void* main_bottom = nullptr;
  size_t main_bytes = 0;
  void *barrier_token = nullptr, *start_token = nullptr, *end_token = nullptr;  // TSan
  char* warp_tokens = nullptr;                                                  // one for each warp

  Fiber& current() { return *fibers[size_t(running)]; }
};
thread_local Worker* worker = nullptr;

void land(const Copy& copy) {
#ifdef EMULATOR_TSAN
  if (copy.copy) __tsan_read16(const_cast<void*>(copy.from));
  __tsan_write16(copy.to);
#endif
  if (copy.copy)
    std::memcpy(copy.to, copy.from, 16);
  else
    std::memset(copy.to, 0, 16);
}

// From the running fiber, or the worker itself, to another.
void switch_to(int next) {
  Worker& w = *worker;
  if (next == w.running) return;
  Fiber* from = w.running == kMain ? nullptr : w.fibers[size_t(w.running)].get();
  Fiber* to = next == kMain ? nullptr : w.fibers[size_t(next)].get();
  w.running = next;
  ++w.switches;
#ifdef EMULATOR_ASAN
  void** keep = from ? (from->done ? nullptr : &from->sanitizer) : &w.main_sanitizer;
  __sanitizer_start_switch_fiber(keep, to ? to->stack : w.main_bottom, to ? kStackBytes : w.main_bytes);
#endif
#ifdef EMULATOR_TSAN
  __tsan_switch_to_fiber(to ? to->sanitizer : w.main_sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
  emulator_switch(from ? &from->stack_pointer : &w.main_stack, to ? to->stack_pointer : w.main_stack);
#ifdef EMULATOR_ASAN
  Fiber* mine = worker->running == kMain ? nullptr : &worker->current();
  __sanitizer_finish_switch_fiber(mine ? mine->sanitizer : worker->main_sanitizer, nullptr, nullptr);
#endif
}

void make_ready(int fiber) { worker->ready.push(fiber); }

int take_ready() {  // kMain: nobody is
  Worker& w = *worker;
  if (w.ready.size() == 0) return kMain;
  if (order_seed) std::swap(w.ready[0], w.ready[unsigned(w.random() % w.ready.size())]);
  return w.ready.pop();
}

[[noreturn]] void fail(const std::string& message) {
  worker->error = std::string("kernel ") + worker->kernel + ": " + message;
  switch_to(kMain);
  std::abort();  // nobody comes back
}

[[noreturn]] void report_deadlock() {
  std::ostringstream text;
  text << "deadlock in block " << worker->block.x;
  std::string last;
  int left = 0;
  for (const auto& fiber : worker->fibers) {
    if (fiber->thread.x >= worker->size.x) break;
    if (fiber->done) {
      ++left;
      continue;
    }
    const std::string place = describe(fiber->waits);
    if (place != last) text << "; thread " << fiber->thread.x << " waits in " << place;
    last = place;
  }
  text << "; " << left << " threads have left";
  fail(text.str());
}

void run_others() {  // the running fiber waits
  const int next = take_ready();
  if (next == kMain) report_deadlock();
  switch_to(next);
}

void open_barrier() {
  for (const int fiber : worker->at_barrier)
    if (fiber != worker->running) make_ready(fiber);
  worker->at_barrier.clear();
}

void fiber_main() {
#ifdef EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(
      nullptr, worker->main_bottom ? nullptr : &worker->main_bottom,
      worker->main_bytes ? nullptr : &worker->main_bytes);
#endif
#ifdef EMULATOR_TSAN
  __tsan_acquire(worker->start_token);
#endif
  (*worker->body)();
  Worker& w = *worker;
#ifdef EMULATOR_TSAN
  __tsan_release(w.end_token);
#endif
  w.current().done = true;
  --w.alive;
  if (!w.at_barrier.empty() && int(w.at_barrier.size()) == w.alive) open_barrier();
  if (w.alive == 0) switch_to(kMain);
  run_others();
  std::abort();
}

void prepare(Fiber& fiber, unsigned thread) {
#ifdef EMULATOR_TSAN  // a fresh mapping: the runtime forgets what the block before did there
  if (fiber.stack) unmap_memory(fiber.stack, kStackBytes), fiber.stack = nullptr;
  fiber.sanitizer = __tsan_create_fiber(0);
#else
  fiber.sanitizer = nullptr;
#endif
  if (!fiber.stack) fiber.stack = map_memory(kStackBytes);
#ifdef EMULATOR_ASAN
  ASAN_UNPOISON_MEMORY_REGION(fiber.stack, kStackBytes);
#endif
  fiber.thread = {thread};
  fiber.done = false;
  fiber.copies.clear();
  void** top = reinterpret_cast<void**>(fiber.stack + kStackBytes - 64);
  *--top = nullptr;                               // keeps the stack aligned to 16 where fiber_main begins
  *--top = reinterpret_cast<void*>(&fiber_main);  // where emulator_switch returns to
  for (int i = 0; i < 6; ++i) *--top = nullptr;   // the registers that it restores
  fiber.stack_pointer = top;
}

void run_block(Worker& w, unsigned block) {
  w.block = {block};
  w.alive = int(w.size.x);
  w.ready.clear(), w.at_barrier.clear();
  w.at_barrier.reserve(w.size.x);
  w.meetings.assign((w.size.x + kWarp - 1) / kWarp, Meeting{});
#ifdef EMULATOR_TSAN
  if (w.shared) unmap_memory(w.shared, kSharedBytes), w.shared = nullptr;
  // Tokens of its own for each block: blocks are not ordered among themselves.
  static thread_local std::vector<std::unique_ptr<char[]>> tokens;
  tokens.push_back(std::make_unique<char[]>(16 + kMostThreads / kWarp));
  w.barrier_token = tokens.back().get(), w.start_token = tokens.back().get() + 8;
  w.warp_tokens = tokens.back().get() + 16;
#endif
  if (!w.shared) w.shared = map_memory(kSharedBytes);
#ifdef EMULATOR_ASAN
  ASAN_UNPOISON_MEMORY_REGION(w.shared, kSharedBytes);
#endif
  std::memset(w.shared, 0xff, w.shared_bytes);  // NaN in every type: what nobody has written shows
#ifdef EMULATOR_ASAN
  ASAN_POISON_MEMORY_REGION(w.shared + w.shared_bytes, kSharedBytes - w.shared_bytes);
#endif
  while (w.fibers.size() < w.size.x) w.fibers.push_back(std::make_unique<Fiber>());
  for (unsigned i = 0; i < w.size.x; ++i) {
    prepare(*w.fibers[i], i);
    w.ready.push(int(i));
  }
#ifdef EMULATOR_TSAN
  __tsan_release(w.start_token);
#endif
  switch_to(take_ready());
#ifdef EMULATOR_TSAN
  for (unsigned i = 0; i < w.size.x; ++i) __tsan_destroy_fiber(w.fibers[i]->sanitizer);
#endif
#ifdef EMULATOR_ASAN
  ASAN_UNPOISON_MEMORY_REGION(w.shared, kSharedBytes);
#endif
}

float to_float(uint16_t bits, bool is_half) {
  if (is_half) return float(c10::Half(bits, c10::Half::from_bits()));
  return float(c10::BFloat16(bits, c10::BFloat16::from_bits()));
}

// PTX manual, mma.m16n8k16: with g = lane / 4 and t = lane % 4, a0 (g, 2t), a1 (g + 8, 2t), a2 (g, 2t + 8),
// a3 (g + 8, 2t + 8); b0 (2t, g), b1 (2t + 8, g); c0, c1 (g, 2t), c2, c3 (g + 8, 2t). Words hold two neighbours in k.
void multiply(void** lanes, bool is_half) {
  float a[16][16], b[16][8], c[16][8];
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    const Product& mine = *static_cast<Product*>(lanes[lane]);
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned i = 0; i < 2; ++i) {
      auto at = [&](uint32_t word) { return to_float(uint16_t(word >> (16 * i)), is_half); };
      for (unsigned part = 0; part < 4; ++part) a[g + part % 2 * 8][2 * t + part / 2 * 8 + i] = at(mine.a[part]);
      for (unsigned part = 0; part < 2; ++part) b[2 * t + 8 * part + i][g] = at(mine.b[part]);
      for (unsigned part = 0; part < 2; ++part) c[g + 8 * part][2 * t + i] = mine.c[2 * part + i];
    }
  }
  for (unsigned row = 0; row < 16; ++row)
    for (unsigned k = 0; k < 16; ++k)
      for (unsigned column = 0; column < 8; ++column) c[row][column] += a[row][k] * b[k][column];
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    Product& mine = *static_cast<Product*>(lanes[lane]);
    for (unsigned i = 0; i < 4; ++i) mine.c[i] = c[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
  }
}

// Lane 8m + r gives row r of matrix m; lane l gets of each matrix row l / 4, columns 2 (l % 4) and the next.
void load(void** lanes, bool transposed) {
  for (unsigned m = 0; m < 4; ++m) {
    uint16_t matrix[8][8];
    for (unsigned r = 0; r < 8; ++r) std::memcpy(matrix[r], static_cast<MatrixRows*>(lanes[8 * m + r])->row, 16);
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      const unsigned r = lane / 4, c = 2 * (lane % 4);
      const uint32_t low = transposed ? matrix[c][r] : matrix[r][c];
      const uint32_t high = transposed ? matrix[c + 1][r] : matrix[r][c + 1];
      static_cast<MatrixRows*>(lanes[lane])->to[m] = low | high << 16;
    }
  }
}

}  // namespace

void set_driver(Driver given) { driver = given; }

bool drive(const void* function, int64_t blocks, unsigned threads, size_t shared_bytes, const void* const* arguments) {
  if (!driver) return false;
  Dl_info info{};
  if (!dladdr(function, &info) || !info.dli_sname) throw std::runtime_error("a kernel without a symbol was launched");
  driver(info.dli_sname, blocks, threads, shared_bytes, arguments);
  return true;
}

Counts configure(uint64_t seed, int threads) {
  order_seed = seed;
  if (threads > 0) machine_threads = threads;
  return {blocks_run.exchange(0), switches_made.exchange(0), warp_words_run.exchange(0)};
}

const Index& thread_index() { return worker->current().thread; }
const Index& block_index() { return worker->block; }
const Index& block_size() { return worker->size; }
unsigned char* shared_memory() { return worker->shared; }

void forbid([[maybe_unused]] unsigned char* begin, [[maybe_unused]] unsigned char* end) {
#ifdef EMULATOR_ASAN
  unsigned char* limit = worker->shared + worker->shared_bytes;
  if (begin < limit) ASAN_POISON_MEMORY_REGION(begin, size_t(std::min(end, limit) - begin));
#endif
}

void wait_for_block(Place place) {
  Worker& w = *worker;
  w.current().waits = place;
  if (w.at_barrier.empty())
    w.barrier = place;
  else if (!same(w.barrier, place))
    fail("threads of one block at different barriers: " + describe(w.barrier) + " and " + describe(place));
#ifdef EMULATOR_TSAN
  __tsan_release(w.barrier_token);
#endif
  w.at_barrier.push_back(w.running);
  if (int(w.at_barrier.size()) == w.alive) {
    open_barrier();
    if (order_seed) {
      make_ready(w.running);
      run_others();
    }
  } else {
    run_others();
  }
#ifdef EMULATOR_TSAN
  __tsan_acquire(w.barrier_token);
#endif
}

void meet_warp(unsigned mask, void* brought, Together together, Place place) {
  Worker& w = *worker;
  const unsigned thread = w.current().thread.x, lane = thread % kWarp;
  w.current().waits = place;
  if (mask != 0xffffffffu) fail("only words of the whole warp are modelled: " + describe(place));
  Meeting& meeting = w.meetings[thread / kWarp];
  if (!meeting.arrived) {
    meeting.mask = mask, meeting.together = together, meeting.place = place;
  } else if (meeting.together != together || !same(meeting.place, place)) {
    fail("lanes of one warp at different words: " + describe(meeting.place) + " and " + describe(place));
  }
#ifdef EMULATOR_TSAN
  if (together == load_matrices || together == load_matrices_transposed)
    __tsan_read16(const_cast<void*>(static_cast<MatrixRows*>(brought)->row));
#endif
  meeting.brought[lane] = brought;
  meeting.arrived |= 1u << lane;
  if (meeting.arrived != mask) {
    run_others();
    return;
  }
  ++w.warp_words;
  together(meeting.brought);
  meeting.arrived = 0;
  for (unsigned i = 0; i < kWarp; ++i)
    if (i != lane) make_ready(int(thread / kWarp * kWarp + i));
  if (order_seed) {
    make_ready(w.running);
    run_others();
  }
}

void wait_for_warp(Place place) {
#ifdef EMULATOR_TSAN
  char* token = worker->warp_tokens + worker->current().thread.x / kWarp;
  __tsan_release(token);
#endif
  meet_warp(0xffffffffu, nullptr, [](void**) {}, place);
#ifdef EMULATOR_TSAN
  __tsan_acquire(token);
#endif
}

void shuffle_together(void** lanes) {
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    Shuffle& mine = *static_cast<Shuffle*>(lanes[lane]);
    mine.taken = static_cast<Shuffle*>(lanes[mine.from])->given;
  }
}
void load_matrices(void** lanes) { load(lanes, false); }
void load_matrices_transposed(void** lanes) { load(lanes, true); }
void multiply_half(void** lanes) { multiply(lanes, true); }
void multiply_bf16(void** lanes) { multiply(lanes, false); }

void cp_async_16(void* shared, const void* global, bool copy) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16)
    fail("cp.async of 16 bytes at an address that is not aligned to them");
#ifdef EMULATOR_TSAN
  __tsan_write16(shared);  // from here to its wait it may land at any time
#endif
  const Copy asked{shared, global, copy};
  if (order_seed && worker->random() % 2) {  // at random: half of the copies land at once
    land(asked);
    return;
  }
  Copies& copies = worker->current().copies;
  copies.under_way.push(asked);
  ++copies.uncommitted;
}

void cp_async_commit() {
  Copies& copies = worker->current().copies;
  copies.groups.push(copies.uncommitted);
  copies.uncommitted = 0;
}

void cp_async_wait_for(int pending) {
  Copies& copies = worker->current().copies;
  while (int(copies.groups.size()) > pending)
    for (unsigned left = copies.groups.pop(); left > 0; --left) land(copies.under_way.pop());
}

void run(const char* kernel, int64_t blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& body) {
  if (shared_bytes > kMostShared)
    throw std::runtime_error(std::string(kernel) + ": more shared memory than any GPU has");
  std::vector<unsigned> order(static_cast<size_t>(blocks));
  for (size_t i = 0; i < order.size(); ++i) order[i] = unsigned(i);
  if (order_seed) std::shuffle(order.begin(), order.end(), std::mt19937_64(order_seed));
  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::string error;
  char end_token[8] = {};
  auto work = [&](int number) {
    Worker w;
    w.size = {threads};
    w.shared_bytes = shared_bytes, w.body = &body, w.kernel = kernel, w.end_token = end_token;
    w.random.seed(order_seed * 1000003 + uint64_t(number));
#ifdef EMULATOR_TSAN
    w.main_sanitizer = __tsan_get_current_fiber();
#endif
    worker = &w;
    for (size_t i; w.error.empty() && (i = next.fetch_add(1)) < order.size();) {
      run_block(w, order[i]);
      ++blocks_run;
    }
#ifdef EMULATOR_TSAN
    __tsan_acquire(end_token);
#endif
    for (auto& fiber : w.fibers) unmap_memory(fiber->stack, kStackBytes);
    if (w.shared) unmap_memory(w.shared, kSharedBytes);
    switches_made += w.switches, warp_words_run += w.warp_words;
    if (!w.error.empty()) {
      std::lock_guard<std::mutex> lock(mutex);
      error = w.error;
      next = order.size();
    }
    worker = nullptr;
  };
  std::vector<std::thread> helpers;
  for (int i = 1; i < std::min<int64_t>(machine_threads, blocks); ++i) helpers.emplace_back(work, i);
  work(0);
  for (std::thread& helper : helpers) helper.join();
#ifdef EMULATOR_TSAN
  __tsan_acquire(end_token);
#endif
  if (!error.empty()) throw std::runtime_error(error);
}

}  // namespace emulator

// For tests, by ctypes.
extern "C" void longspan_emulator_configure(uint64_t seed, int threads, int64_t* counts) {
  const emulator::Counts ran = emulator::configure(seed, threads);
  counts[0] = ran.blocks, counts[1] = ran.switches, counts[2] = ran.warp_words;
}
extern "C" void longspan_emulator_set_driver(emulator::Driver driver) { emulator::set_driver(driver); }
