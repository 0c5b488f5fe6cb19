#include "cpu/isa.h"

#if defined(LONGSPAN_X86) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <atomic>

namespace longspan::cpu {

namespace {

// The kernel lets a process use matrix tiles only after it asked for them.
bool may_use_tiles() {
#if defined(LONGSPAN_X86) && defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  __get_cpuid_count(7, 0, &a, &b, &c, &d);
  constexpr unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24;
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return (d & amx_bf16) && (d & amx_tile) && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

Isa find_isa() {
#ifdef LONGSPAN_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    if (!__builtin_cpu_supports("avx512bf16")) return Isa::avx512;
    return may_use_tiles() ? Isa::amx : Isa::avx512_bf16;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::portable;
}

}  // namespace

Isa supported_isa() {
  static const Isa found = find_isa();
  return found;
}

namespace {

std::atomic<int64_t> limit{int64_t(Isa::amx)};

int64_t get_isa() { return int64_t(isa()); }

// Lowers the set in use, for tests that compare the paths; returns the one then in use.
int64_t limit_isa(int64_t level) {
  STD_TORCH_CHECK(
      level >= 0 && level <= int64_t(Isa::amx), "limit_cpu_isa: 0 portable, 1 AVX2, 2 AVX-512, 3 its BF16, 4 AMX; got ",
      level);
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
