// Banded attention forward in bfloat16 on dot products of vectors (AVX512_BF16).
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
LONGSPAN_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
namespace {
#include "cpu/simd.h"
#include "cpu/staging.h"
#include "cpu/banded_bf16_kernel.h"

struct DotProducts {
  static constexpr int64_t Q = 32;
  static constexpr int group = 8;  // rows whose 8 x 2 sums stay in registers

  // c [rows][32] = a [rows][depth words] b [depth words][32]; rows a multiple of 8.
  void product(const uint32_t* a, int64_t a_stride, int64_t rows, int64_t depth, const uint32_t* b, float* c) {
    for (int64_t row = 0; row < rows; row += group) {
      __m512 sums[group][2];
      for (int i = 0; i < group; ++i) sums[i][0] = sums[i][1] = _mm512_setzero_ps();
      multiply(sums, a + row * a_stride, a_stride, depth, b);
      store(sums, c + row * Q);
    }
  }

  // c [32][32] += sum over groups of a [group][32][16 words] b [group][16 words][32].
  void accumulate(const uint32_t* a, int64_t groups, const uint32_t* b, float* c) {
    for (int64_t row = 0; row < 32; row += group) {
      __m512 sums[group][2];
      for (int i = 0; i < group; ++i)
        for (int v = 0; v < 2; ++v) sums[i][v] = _mm512_loadu_ps(c + (row + i) * Q + v * 16);
      for (int64_t g = 0; g < groups; ++g) multiply(sums, a + (g * 32 + row) * 16, 16, 16, b + g * 16 * Q);
      store(sums, c + row * Q);
    }
  }

 private:
  static inline __attribute__((always_inline)) void multiply(
      __m512 (&sums)[group][2], const uint32_t* a, int64_t a_stride, int64_t depth, const uint32_t* b) {
    for (int64_t k = 0; k < depth; ++k) {
      const __m512bh first = (__m512bh)_mm512_loadu_si512(b + k * Q),
                     second = (__m512bh)_mm512_loadu_si512(b + k * Q + 16);
#pragma GCC unroll 8
      for (int i = 0; i < group; ++i) {
        const __m512bh x = (__m512bh)_mm512_set1_epi32(int(a[i * a_stride + k]));
        sums[i][0] = _mm512_dpbf16_ps(sums[i][0], x, first);
        sums[i][1] = _mm512_dpbf16_ps(sums[i][1], x, second);
      }
    }
  }

  static inline __attribute__((always_inline)) void store(const __m512 (&sums)[group][2], float* c) {
    for (int i = 0; i < group; ++i)
      for (int v = 0; v < 2; ++v) _mm512_storeu_ps(c + i * Q + v * 16, sums[i][v]);
  }
};

constexpr BandedKernels table = BandedBf16<DotProducts>::kernels();
}  // namespace
LONGSPAN_TARGET_END

const BandedKernels& banded_bf16_avx512() { return table; }
#else
const BandedKernels& banded_bf16_avx512() { return banded_portable(); }
#endif

}  // namespace longspan::cpu
