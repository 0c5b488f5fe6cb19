// Banded attention compiled for AVX-512.
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
LONGSPAN_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
namespace {
#include "cpu/simd.h"
#include "cpu/gemm.h"
#include "cpu/staging.h"
#include "cpu/banded_kernel.h"
constexpr BandedKernels table = Banded<float, 16>::kernels();
}  // namespace
LONGSPAN_TARGET_END

const BandedKernels& banded_avx512() { return table; }
#else
const BandedKernels& banded_avx512() { return banded_portable(); }
#endif

}  // namespace longspan::cpu
