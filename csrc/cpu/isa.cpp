#include "cpu/isa.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <atomic>

namespace longspan::cpu {

Isa supported_isa() {
#ifdef LONGSPAN_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::portable;
}

namespace {

std::atomic<int64_t> limit{int64_t(Isa::avx512)};

int64_t get_isa() { return int64_t(isa()); }

// Lowers the set in use, for tests that compare the paths; returns the one then in use.
int64_t limit_isa(int64_t level) {
  STD_TORCH_CHECK(level >= 0 && level <= int64_t(Isa::avx512), "limit_isa: 0 portable, 1 AVX2, 2 AVX-512; got ", level);
  limit = level;
  return get_isa();
}

}  // namespace

Isa isa() { return Isa(std::min(limit.load(), int64_t(supported_isa()))); }

}  // namespace longspan::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(longspan, m) {
  m.def("cpu_isa() -> int");
  m.def("limit_cpu_isa(int level) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(longspan, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&longspan::cpu::get_isa));
  m.impl("limit_cpu_isa", TORCH_BOX(&longspan::cpu::limit_isa));
}
