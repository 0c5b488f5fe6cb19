// longspan::seeded_dropout on the CPU, as models/longspan/ops/dropout.py defines it.
#include "cpu/dropout.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "cpu/isa.h"
#include "cpu/tensors.h"

namespace longspan::cpu {
namespace {

using torch::stable::Tensor;

Tensor seeded_dropout(Tensor x, Tensor seed, double p) {
  x = torch::stable::contiguous(x);
  Tensor out = torch::stable::empty_like(x);
  const Dropout dropout = make_dropout(*static_cast<const int64_t*>(seed.data_ptr()), p);
  const DropoutKernel kernel = isa() == Isa::portable ? dropout_portable
                               : isa() == Isa::avx2   ? dropout_avx2
                                                      : dropout_avx512;
  const Dtype dtype = dtype_of(x);
  torch::stable::parallel_for(0, x.numel(), 1 << 15, [&](int64_t begin, int64_t end) {
    kernel(dropout, x.data_ptr(), out.data_ptr(), dtype, begin, end);
  });
  return out;
}

}  // namespace
}  // namespace longspan::cpu

STABLE_TORCH_LIBRARY_IMPL(longspan, CPU, m) { m.impl("seeded_dropout", TORCH_BOX(&longspan::cpu::seeded_dropout)); }
