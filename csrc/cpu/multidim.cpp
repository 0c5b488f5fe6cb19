// longspan::multidim_attention on the CPU, as models/longspan/ops/multidim.py defines it.
#include "cpu/multidim.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/tensors.h"

namespace longspan::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGroupTokens = 64;  // of short sequences that make one item
constexpr int64_t kGrain = 1 << 17;   // pairs of a feature that are worth being taken by themselves

const MultidimKernels& kernels_for(const Tensor& value) {
  if (value.scalar_type() == ScalarType::Double) return multidim_portable_f64();
  switch (isa()) {
    case Isa::portable:
      return multidim_portable();
    case Isa::avx2:
      return multidim_avx2();
    default:
      return multidim_avx512();
  }
}

// The kernels want features contiguous; any other strides are theirs to follow.
Tensor with_features(const Tensor& tensor) {
  return tensor.stride(2) == 1 || tensor.size(2) <= 1 ? tensor : torch::stable::contiguous(tensor);
}

Rows sequences_of(const Tensor& tensor) {
  return {tensor.data_ptr(), dtype_of(tensor), tensor.stride(0), 0, tensor.stride(1)};
}

Tensor in_statistics(const Tensor& bias, const Tensor& value) {
  Tensor wide = torch::stable::new_empty(bias, {bias.size(0)}, statistics_of(value));
  torch::stable::copy_(wide, bias);
  return wide;
}

// The inputs, held in the form that the kernels want, and the problem that refers to them.
struct Inputs {
  Tensor dependent, head, value, bias;
  std::optional<Tensor> key_mask;
  MultidimProblem problem{};

  Inputs(
      const Tensor& dependent, const Tensor& head, const Tensor& value, const Tensor& bias,
      const std::optional<Tensor>& key_mask, bool earlier, bool later, bool own, double scale)
      : dependent(with_features(dependent)),
        head(with_features(head)),
        value(with_features(value)),
        bias(in_statistics(bias, value)) {
    const int64_t B = value.size(0), L = value.size(1), D = value.size(2);
    for (const Tensor* other : {&dependent, &head})
      STD_TORCH_CHECK(
          other->size(0) == B && other->size(1) == L && other->size(2) == D &&
              other->scalar_type() == value.scalar_type(),
          "multidim_attention: dependent, head and value of one shape and dtype wanted");
    STD_TORCH_CHECK(bias.size(0) == D, "multidim_attention: bias [features] wanted");
    problem.B = B, problem.L = L, problem.D = D;
    problem.earlier = earlier, problem.later = later, problem.own = own, problem.scale = scale;
    problem.dependent = sequences_of(this->dependent), problem.head = sequences_of(this->head);
    problem.value = sequences_of(this->value), problem.bias = this->bias.data_ptr();
    if (!key_mask) return;
    STD_TORCH_CHECK(
        key_mask->size(0) == B && key_mask->size(1) == L && key_mask->scalar_type() == ScalarType::Bool,
        "multidim_attention: key_mask bool [batch, tokens] wanted");
    this->key_mask = torch::stable::contiguous(*key_mask);
    problem.key_mask = static_cast<const bool*>(this->key_mask->data_ptr());
  }

  int64_t sequences_of_group() const { return std::max<int64_t>(1, kGroupTokens / std::max<int64_t>(1, problem.L)); }
  int64_t groups() const { return (problem.B + sequences_of_group() - 1) / sequences_of_group(); }

  // Long sequences come in narrow tiles: theirs stay in the cache, and one sequence is enough for several threads.
  void run(void (*pass)(const MultidimProblem&, const MultidimItem&, void*), const MultidimKernels& kernels) const {
    if (problem.B == 0 || problem.L == 0 || problem.D == 0) return;
    const int64_t features = problem.L <= kGroupTokens ? 64 : 16, tiles = (problem.D + features - 1) / features;
    const int64_t size = sequences_of_group(), pairs = size * problem.L * problem.L * features;
    const int64_t items = groups() * tiles, grain = std::max<int64_t>(1, kGrain / pairs);
    const size_t pieces = size_t((items + grain - 1) / grain);
    run_items("multidim_attention", pieces, kernels.scratch_bytes(problem, features), [&](size_t piece, void* scratch) {
      const int64_t begin = int64_t(piece) * grain, end = std::min(begin + grain, items);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t group = i / tiles, feature = i % tiles * features;
        const int64_t first = group * size, last = std::min(first + size, problem.B);
        pass(problem, {first, last, group, feature, std::min(features, problem.D - feature)}, scratch);
      }
    });
  }
};

std::tuple<Tensor, Tensor> forward(
    Tensor dependent, Tensor head, Tensor value, Tensor bias, std::optional<Tensor> key_mask, bool earlier, bool later,
    bool own, double scale) {
  Inputs inputs(dependent, head, value, bias, key_mask, earlier, later, own, scale);
  const std::vector<int64_t> shape = {value.size(0), value.size(1), value.size(2)};
  Tensor out = torch::stable::new_empty(value, shape);
  Tensor denominator = torch::stable::new_empty(value, shape, statistics_of(value));
  inputs.problem.out = sequences_of(out), inputs.problem.denominator = sequences_of(denominator);
  const MultidimKernels& kernels = kernels_for(value);
  inputs.run(kernels.forward, kernels);
  return {out, denominator};
}

// Sums over groups, which are in a fixed order whatever the number of threads.
template <class T>
void sum_groups(const Tensor& groups, Tensor& total) {
  const int64_t G = groups.size(0), D = groups.size(1);
  const T* from = static_cast<const T*>(groups.data_ptr());
  std::vector<double> sums(size_t(D), 0.0);
  for (int64_t g = 0; g < G; ++g)
    for (int64_t d = 0; d < D; ++d) sums[size_t(d)] += double(from[g * D + d]);
  for (int64_t d = 0; d < D; ++d) static_cast<T*>(total.data_ptr())[d] = T(sums[size_t(d)]);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    Tensor grad_out, std::optional<Tensor> grad_denominator, Tensor dependent, Tensor head, Tensor value, Tensor bias,
    Tensor out, Tensor denominator, std::optional<Tensor> key_mask, bool earlier, bool later, bool own, double scale) {
  Inputs inputs(dependent, head, value, bias, key_mask, earlier, later, own, scale);
  MultidimProblem& problem = inputs.problem;
  const std::vector<int64_t> shape = {value.size(0), value.size(1), value.size(2)};
  Tensor grads[3] = {
      torch::stable::new_empty(value, shape), torch::stable::new_empty(value, shape),
      torch::stable::new_empty(value, shape)};
  const int64_t groups = problem.L ? inputs.groups() : 0;
  Tensor of_groups = torch::stable::new_empty(value, {groups, problem.D}, statistics_of(value));
  grad_out = with_features(grad_out), out = with_features(out), denominator = with_features(denominator);
  problem.grad_out = sequences_of(grad_out), problem.out = sequences_of(out);
  problem.denominator = sequences_of(denominator);
  if (grad_denominator) {
    grad_denominator = with_features(*grad_denominator);
    problem.grad_denominator = sequences_of(*grad_denominator);
  }
  problem.grad_dependent = sequences_of(grads[0]), problem.grad_head = sequences_of(grads[1]);
  problem.grad_value = sequences_of(grads[2]), problem.grad_bias = of_groups.data_ptr();
  const MultidimKernels& kernels = kernels_for(value);
  inputs.run(kernels.backward, kernels);

  Tensor total = torch::stable::empty_like(inputs.bias), grad_bias = torch::stable::empty_like(bias);
  if (total.scalar_type() == ScalarType::Double)
    sum_groups<double>(of_groups, total);
  else
    sum_groups<float>(of_groups, total);
  torch::stable::copy_(grad_bias, total);
  return {grads[0], grads[1], grads[2], grad_bias};
}

}  // namespace
}  // namespace longspan::cpu

STABLE_TORCH_LIBRARY_IMPL(longspan, CPU, m) {
  m.impl("multidim_attention", TORCH_BOX(&longspan::cpu::forward));
  m.impl("multidim_attention_backward", TORCH_BOX(&longspan::cpu::backward));
}
