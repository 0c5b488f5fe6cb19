// Which GPUs the kernels were compiled for: longspan::cuda_architectures() -> [80, 90] for 8.0 and 9.0.
#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <vector>

#ifdef LONGSPAN_CUDA_ARCHITECTURES
namespace longspan::cuda {
namespace {
std::vector<int64_t> architectures() { return {LONGSPAN_CUDA_ARCHITECTURES}; }
}  // namespace
}  // namespace longspan::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(longspan, m) { m.def("cuda_architectures() -> int[]"); }
STABLE_TORCH_LIBRARY_IMPL(longspan, CompositeExplicitAutograd, m) {
  m.impl("cuda_architectures", TORCH_BOX(&longspan::cuda::architectures));
}
#endif
