// The fused multiply-add rate that the instruction set in use can reach: what kernels are measured against.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>

#include "cpu/isa.h"

namespace longspan::cpu {
namespace {

constexpr int kChains = 12;  // independent sums: more than latency x issue width of any core so far
constexpr int64_t kRounds = 1 << 16;

// Floating-point operations done by one call.
using Probe = int64_t (*)(float*);

#define LONGSPAN_PROBE(name, lanes)                                                                 \
  int64_t name(float* result) {                                                                     \
    typedef float Vec __attribute__((vector_size(4 * lanes)));                                      \
    Vec sums[kChains], factor = Vec{} + .999f, term = Vec{} + 1e-3f;                                \
    for (int i = 0; i < kChains; ++i) sums[i] = Vec{} + float(i);                                   \
    for (int64_t round = 0; round < kRounds; ++round)                                               \
      _Pragma("GCC unroll 12") for (int i = 0; i < kChains; ++i) sums[i] = sums[i] * factor + term; \
    for (int i = 1; i < kChains; ++i) sums[0] += sums[i];                                           \
    *result = sums[0][0];                                                                           \
    return 2 * lanes * kChains * kRounds;                                                           \
  }

LONGSPAN_PROBE(probe_portable, 4)
#ifdef LONGSPAN_X86
LONGSPAN_TARGET_BEGIN("avx2,fma")
LONGSPAN_PROBE(probe_avx2, 8)
LONGSPAN_TARGET_END
LONGSPAN_TARGET_BEGIN("avx512f")
LONGSPAN_PROBE(probe_avx512, 16)
LONGSPAN_TARGET_END
constexpr Probe kProbes[] = {probe_portable, probe_avx2, probe_avx512, probe_avx512, probe_avx512};
#else
constexpr Probe kProbes[] = {probe_portable};
#endif

// GFLOP/s of all torch threads together, in the best of several windows of about 5 ms.
double cpu_fma_peak() {
  const Probe probe = kProbes[int(isa())];
  const int64_t threads = torch::stable::get_num_threads();
  double best = 0;
  for (int window = 0; window < 40; ++window) {
    std::atomic<int64_t> done{0};
    const auto start = std::chrono::steady_clock::now();
    torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      float result;
      for (int64_t i = begin; i < end; ++i)
        for (int repeat = 0; repeat < 16; ++repeat) done += probe(&result);
    });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, double(done) / seconds.count() / 1e9);
  }
  return best;
}

}  // namespace
}  // namespace longspan::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(longspan, m) { m.def("cpu_fma_peak() -> float"); }
STABLE_TORCH_LIBRARY_IMPL(longspan, CompositeExplicitAutograd, m) {
  m.impl("cpu_fma_peak", TORCH_BOX(&longspan::cpu::cpu_fma_peak));
}
