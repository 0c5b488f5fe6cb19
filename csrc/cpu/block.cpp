// longspan::block_attention on the CPU, as models/longspan/ops/block.py defines it: chunks in the tokens' own order.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "cpu/windows_tensors.h"

namespace longspan::cpu {
namespace {

using torch::stable::Tensor;

struct Blocks {
  Tensor query, key, value;
  OptionalTensor key_mask;
  WindowsProblem problem{};

  Blocks(
      const Tensor& query, const Tensor& key, const Tensor& value, const OptionalTensor& key_mask,
      const OptionalTensor& dropout_seed, double scale, double dropout_p, int64_t block_size, int64_t before,
      int64_t after, bool causal, bool wrap)
      : query(with_rows(query)), key(with_rows(key)), value(with_rows(value)), key_mask(contiguous(key_mask)) {
    describe(problem, query, this->key_mask, dropout_seed, dropout_p);
    problem.R = 1;
    problem.query = rows_of(this->query), problem.key = rows_of(this->key), problem.value = rows_of(this->value);
    problem.scale = scale;
    problem.chunk = std::max<int64_t>(1, std::min(block_size, problem.T));
    problem.before = wrap ? before : std::min(before, problem.chunks());
    problem.after = wrap ? after : std::min(after, problem.chunks());
    problem.causal = causal, problem.wrap = wrap;
  }
};

std::tuple<Tensor, Tensor> forward(
    Tensor query, Tensor key, Tensor value, OptionalTensor key_mask, OptionalTensor dropout_seed, double scale,
    double dropout_p, int64_t block_size, int64_t before, int64_t after, bool causal, bool wrap) {
  const Blocks blocks(
      query, key, value, key_mask, dropout_seed, scale, dropout_p, block_size, before, after, causal, wrap);
  return attend(blocks.problem, query);
}

std::tuple<Tensor, Tensor, Tensor> backward(
    Tensor grad_out, OptionalTensor grad_lse, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse,
    OptionalTensor key_mask, OptionalTensor dropout_seed, double scale, double dropout_p, int64_t block_size,
    int64_t before, int64_t after, bool causal, bool wrap) {
  const Blocks blocks(
      query, key, value, key_mask, dropout_seed, scale, dropout_p, block_size, before, after, causal, wrap);
  const auto [grad_query, grad_value, grad_key] =
      attend_backward(blocks.problem, grad_out, grad_lse, query, key, value, out, lse);
  return {grad_query, *grad_key, grad_value};
}

}  // namespace
}  // namespace longspan::cpu

STABLE_TORCH_LIBRARY_IMPL(longspan, CPU, m) {
  m.impl("block_attention", TORCH_BOX(&longspan::cpu::forward));
  m.impl("block_attention_backward", TORCH_BOX(&longspan::cpu::backward));
}
