// All attention and hashing kernels compiled for AVX2.
#include "cpu/isa.h"
#ifdef LONGSPAN_X86
#include <immintrin.h>
#endif
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

#include "cpu/banded.h"
#include "cpu/dropout.h"
#include "cpu/hashing.h"
#include "cpu/multidim.h"
#include "cpu/scratch.h"
#include "cpu/span.h"
#include "cpu/windows.h"

namespace longspan::cpu {
#ifdef LONGSPAN_X86
LONGSPAN_TARGET_BEGIN("avx2,fma")
namespace {
#include "cpu/simd.h"
#include "cpu/gemm.h"
#include "cpu/staging.h"
#include "cpu/transpose.h"
#include "cpu/dropout_lanes.h"
#include "cpu/band_tiles.h"
#include "cpu/banded_kernel.h"
#include "cpu/windows_buffers.h"
#include "cpu/windows_ring.h"
#include "cpu/windows_kernel.h"
#include "cpu/hashing_kernel.h"
#include "cpu/dropout_kernel.h"
#include "cpu/multidim_kernel.h"
#include "cpu/shear.h"
#include "cpu/span_tiles.h"
#include "cpu/span_forward.h"
#include "cpu/span_decode.h"
#include "cpu/span_backward.h"
constexpr BandedKernels banded = Banded<float, 8>::kernels();
constexpr WindowsKernels windows = Attend<float, 8>::kernels();
constexpr HashingKernel hashing = Hashing<float, 8>::kernel();
constexpr DropoutKernel dropout = &drop_elements<8>;
constexpr MultidimKernels multidim = Multidim<float, 8>::kernels();
constexpr SpanKernels span = span_kernels<float, 8>();
}  // namespace
LONGSPAN_TARGET_END

const BandedKernels& banded_avx2() { return banded; }
const WindowsKernels& windows_avx2() { return windows; }
const HashingKernel& hashing_avx2() { return hashing; }
const DropoutKernel dropout_avx2 = dropout;
const MultidimKernels& multidim_avx2() { return multidim; }
const SpanKernels& span_avx2() { return span; }
#else
const BandedKernels& banded_avx2() { return banded_portable(); }
const WindowsKernels& windows_avx2() { return windows_portable(); }
const HashingKernel& hashing_avx2() { return hashing_portable(); }
const DropoutKernel dropout_avx2 = dropout_portable;
const MultidimKernels& multidim_avx2() { return multidim_portable(); }
const SpanKernels& span_avx2() { return span_portable(); }
#endif

}  // namespace longspan::cpu
