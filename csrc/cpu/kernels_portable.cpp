// All attention and hashing kernels in plain vectors of 16 bytes, for every processor, and in double precision.
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
constexpr BandedKernels banded = Banded<float, 4>::kernels(), banded_f64 = Banded<double, 2>::kernels();
constexpr WindowsKernels windows = Attend<float, 4>::kernels(), windows_f64 = Attend<double, 2>::kernels();
constexpr HashingKernel hashing = Hashing<float, 4>::kernel(), hashing_f64 = Hashing<double, 2>::kernel();
constexpr MultidimKernels multidim = Multidim<float, 4>::kernels(), multidim_f64 = Multidim<double, 2>::kernels();
constexpr SpanKernels span = span_kernels<float, 4>(), span_f64 = span_kernels<double, 2>();
}  // namespace

const BandedKernels& banded_portable() { return banded; }
const BandedKernels& banded_portable_f64() { return banded_f64; }
const WindowsKernels& windows_portable() { return windows; }
const WindowsKernels& windows_portable_f64() { return windows_f64; }
const HashingKernel& hashing_portable() { return hashing; }
const HashingKernel& hashing_portable_f64() { return hashing_f64; }
const DropoutKernel dropout_portable = &drop_elements<4>;
const MultidimKernels& multidim_portable() { return multidim; }
const MultidimKernels& multidim_portable_f64() { return multidim_f64; }
const SpanKernels& span_portable() { return span; }
const SpanKernels& span_portable_f64() { return span_f64; }

}  // namespace longspan::cpu
