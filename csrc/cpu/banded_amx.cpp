// Banded attention forward in bfloat16 on matrix tiles (Intel AMX).
#include "cpu/isa.h"
#ifdef LONGSPAN_X86
#include <immintrin.h>
#endif
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cpu/banded.h"

namespace longspan::cpu {
#ifdef LONGSPAN_X86
LONGSPAN_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,amx-tile,amx-bf16")
namespace {
#include "cpu/simd.h"
#include "cpu/staging.h"
#include "cpu/banded_bf16_kernel.h"

// Eight tiles of 16 rows x 64 bytes: 0-3 sums, 4-5 of A, 6-7 of B.
struct Tiles {
  static constexpr int64_t Q = 32;

  Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    asm volatile("" : : "r"(&config) : "memory");  // see before_tile_load; the address, as no one else has it
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }

  // c [rows][32] = a [rows][depth words] b [depth words][32]; rows a multiple of 32, depth of 16.
  void product(const uint32_t* a, int64_t a_stride, int64_t rows, int64_t depth, const uint32_t* b, float* c) {
    before_tile_load();
    for (int64_t row = 0; row < rows; row += 32) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int64_t k = 0; k < depth; k += 16) {
        _tile_loadd(4, a + row * a_stride + k, a_stride * 4);
        _tile_loadd(6, b + k * Q, Q * 4);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + k * Q + 16, Q * 4);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + (row + 16) * a_stride + k, a_stride * 4);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      store(c + row * Q);
    }
  }

  // c [32][32] += sum over groups of a [group][32][16 words] b [group][16 words][32].
  void accumulate(const uint32_t* a, int64_t groups, const uint32_t* b, float* c) {
    before_tile_load();
    _tile_loadd(0, c, Q * 4);
    _tile_loadd(1, c + 16, Q * 4);
    _tile_loadd(2, c + 16 * Q, Q * 4);
    _tile_loadd(3, c + 16 * Q + 16, Q * 4);
    for (int64_t g = 0; g < groups; ++g, a += 32 * 16, b += 16 * Q) {
      _tile_loadd(4, a, 64);
      _tile_loadd(6, b, Q * 4);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, b + 16, Q * 4);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, a + 16 * 16, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    store(c);
  }

 private:
  // GCC's intrinsics do not say that they read memory (of the configuration, only its first 8 bytes): without this,
  // stores that only tiles read may be delayed or dropped.
  static inline __attribute__((always_inline)) void before_tile_load() { asm volatile("" ::: "memory"); }

  static void store(float* to) {
    _tile_stored(0, to, Q * 4);
    _tile_stored(1, to + 16, Q * 4);
    _tile_stored(2, to + 16 * Q, Q * 4);
    _tile_stored(3, to + 16 * Q + 16, Q * 4);
  }
};

constexpr BandedKernels table = BandedBf16<Tiles>::kernels();
}  // namespace
LONGSPAN_TARGET_END

const BandedKernels& banded_bf16_amx() { return table; }
#else
const BandedKernels& banded_bf16_amx() { return banded_portable(); }
#endif

}  // namespace longspan::cpu
