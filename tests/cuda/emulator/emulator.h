// Runs the project's CUDA kernels on the CPU, for tests: enough of CUDA's words for a C++ compiler to take csrc/cuda as
// it stands, and to see what a GPU would not forgive.
//
// A block's threads are fibers of one OS thread that run until they wait for each other: at a barrier, or at a word of
// the whole warp (shuffle, ldmatrix, mma), which the last lane to arrive carries out for all. What it models, and what
// it does not: README.md beside this file.
#pragma once
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

using std::max;
using std::min;

namespace emulator {

struct Index {
  unsigned x;
};

// Where in the kernel's source a thread waits.
struct Place {
  const char* word;
  const char* file;
  int line;
};

struct Counts {
  int64_t blocks, switches, warp_words;
};

// The order of threads and blocks: 0: in turn; else at random from this seed, asynchronous copies too. Threads of the
// machine that blocks are spread over. Returns what ran since the last call.
Counts configure(uint64_t seed, int machine_threads);

// Somebody else who runs kernels, given their symbol and where each argument lies: the interpreter of PTX.
using Driver =
    void (*)(const char* symbol, int64_t blocks, unsigned threads, size_t shared_bytes, const void* const* arguments);
void set_driver(Driver driver);  // null: the emulator itself
bool drive(const void* function, int64_t blocks, unsigned threads, size_t shared_bytes, const void* const* arguments);

void run(const char* kernel, int64_t blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& body);

template <class Body, class... Arguments>
void launch(
    const char* kernel, const void* function, int64_t blocks, unsigned threads, size_t shared_bytes, Body&& body,
    const Arguments&... arguments) {
  const void* const places[] = {&arguments...};
  if (!drive(function, blocks, threads, shared_bytes, places)) run(kernel, blocks, threads, shared_bytes, body);
}

unsigned char* shared_memory();
void forbid(unsigned char* begin, unsigned char* end);  // nobody may touch [begin, end) of the shared memory

const Index& thread_index();
const Index& block_index();
const Index& block_size();

void wait_for_block(Place place);
void wait_for_warp(Place place);

// All lanes of a warp meet; the last to arrive runs `together(what each lane brought)`, then all go on.
using Together = void (*)(void** lanes);
void meet_warp(unsigned mask, void* brought, Together together, Place place);

void cp_async_16(void* shared, const void* global, bool copy);
void cp_async_commit();
void cp_async_wait_for(int pending);
template <int pending>
void cp_async_wait() {
  cp_async_wait_for(pending);
}

struct Shuffle {
  uint64_t given, taken;
  unsigned from;  // lane
};
void shuffle_together(void** lanes);

template <class T>
T shuffle(unsigned mask, T value, unsigned from, Place place) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  Shuffle mine{0, 0, from % 32};
  std::memcpy(&mine.given, &value, sizeof(T));
  meet_warp(mask, &mine, shuffle_together, place);
  std::memcpy(&value, &mine.taken, sizeof(T));
  return value;
}

struct MatrixRows {
  uint32_t* to;
  const void* row;
};
void load_matrices(void** lanes);
void load_matrices_transposed(void** lanes);

struct Product {
  float* c;
  const uint32_t* a;
  uint32_t b[2];
};
void multiply_half(void** lanes);
void multiply_bf16(void** lanes);

#define EMULATOR_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void ldmatrix_x4(uint32_t (&to)[4], const void* row, EMULATOR_HERE) {
  MatrixRows mine{to, row};
  meet_warp(0xffffffffu, &mine, load_matrices, {"ldmatrix", file, line});
}
inline void ldmatrix_x4_transposed(uint32_t (&to)[4], const void* row, EMULATOR_HERE) {
  MatrixRows mine{to, row};
  meet_warp(0xffffffffu, &mine, load_matrices_transposed, {"ldmatrix.trans", file, line});
}
template <class T>
void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, EMULATOR_HERE) {
  Product mine{c, a, {b0, b1}};
  meet_warp(0xffffffffu, &mine, std::is_same_v<T, c10::Half> ? multiply_half : multiply_bf16, {"mma.sync", file, line});
}
template <class T>
uint32_t pack(float low, float high) {
  const T pair[2] = {T(low), T(high)};
  uint32_t word;
  std::memcpy(&word, pair, sizeof(word));
  return word;
}

}  // namespace emulator

#define threadIdx (::emulator::thread_index())
#define blockIdx (::emulator::block_index())
#define blockDim (::emulator::block_size())

inline void __syncthreads(EMULATOR_HERE) { emulator::wait_for_block({"__syncthreads", file, line}); }
inline void __syncwarp(EMULATOR_HERE) { emulator::wait_for_warp({"__syncwarp", file, line}); }
template <class T>
T __shfl_sync(unsigned mask, T value, int from, EMULATOR_HERE) {
  return emulator::shuffle(mask, value, unsigned(from), {"__shfl_sync", file, line});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, EMULATOR_HERE) {
  return emulator::shuffle(mask, value, (threadIdx.x % 32) ^ unsigned(lanes), {"__shfl_xor_sync", file, line});
}
