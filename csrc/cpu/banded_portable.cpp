// Banded attention in plain vectors of 16 bytes, for every processor, and in double precision.
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
namespace {
#include "cpu/simd.h"
#include "cpu/gemm.h"
#include "cpu/staging.h"
#include "cpu/banded_kernel.h"
constexpr BandedKernels table = Banded<float, 4>::kernels(), table_f64 = Banded<double, 2>::kernels();
}  // namespace

const BandedKernels& banded_portable() { return table; }
const BandedKernels& banded_portable_f64() { return table_f64; }

}  // namespace longspan::cpu
