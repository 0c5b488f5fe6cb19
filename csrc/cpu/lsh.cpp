// longspan::lsh_attention and longspan::bucket_attention on the CPU, as models/longspan/ops/lsh.py defines them.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>

#include "cpu/windows_tensors.h"

namespace longspan::cpu {
namespace {

using torch::stable::Tensor;

// The inputs of both operators as kernels want them, and what they describe.
struct Sorted {
  Tensor query_key, value, order, first;
  OptionalTensor key_mask;
  std::vector<int32_t> slot_of;
  WindowsProblem problem{};

  Sorted(
      const Tensor& query_key, const Tensor& value, const Tensor& order, const Tensor& first,
      const OptionalTensor& key_mask, const OptionalTensor& dropout_seed, double dropout_p)
      : query_key(with_rows(query_key)),
        value(with_rows(value)),
        order(torch::stable::contiguous(order)),
        first(torch::stable::contiguous(first)),
        key_mask(contiguous(key_mask)) {
    STD_TORCH_CHECK(
        order.scalar_type() == torch::headeronly::ScalarType::Int && first.scalar_type() == order.scalar_type(),
        "order and first must be int32, as lsh_order returns them");
    describe(problem, query_key, this->key_mask, dropout_seed, dropout_p);
    problem.R = order.size(2);
    problem.query = rows_of(this->query_key), problem.value = rows_of(this->value);
    problem.order = static_cast<const int32_t*>(this->order.data_ptr());
    problem.first = static_cast<const int32_t*>(this->first.data_ptr());
    problem.shared = true;
  }

  void chunked(
      int64_t chunk_size, int64_t before, int64_t after, bool causal, bool wrap, bool same_bucket, bool deduplicate) {
    problem.chunk = std::max<int64_t>(1, std::min(chunk_size, problem.T));
    problem.before = before, problem.after = after;
    problem.causal = causal, problem.wrap = wrap;
    problem.same_bucket = same_bucket, problem.deduplicate = deduplicate;
    if (!wrap) {  // neighbours that no chunk has
      problem.before = std::min(before, problem.chunks()), problem.after = std::min(after, problem.chunks());
    }
    if (deduplicate) find_slots();
  }

  // The newest `window` slots of the same bucket, in blocks of queries.
  void strict(int64_t window) {
    problem.chunk = std::max<int64_t>(1, std::min<int64_t>(kWindowQueries, problem.T));
    problem.reach = std::min(window, problem.T);
    problem.before = (problem.reach + problem.chunk - 1) / problem.chunk;
    problem.after = 0;
    problem.causal = problem.same_bucket = true;
  }

  void find_slots() {
    slot_of.resize(size_t(problem.B * problem.H * problem.R * problem.T));
    for (int64_t row = 0; row < problem.B * problem.H * problem.R; ++row)
      for (int64_t slot = 0; slot < problem.T; ++slot)
        slot_of[size_t(row * problem.T + problem.order[row * problem.T + slot])] = int32_t(slot);
    problem.slot_of = slot_of.data();
  }
};

std::tuple<Tensor, Tensor> forward(
    Tensor query_key, Tensor value, Tensor order, Tensor first, OptionalTensor key_mask, OptionalTensor dropout_seed,
    double dropout_p, int64_t chunk_size, int64_t before, int64_t after, bool causal, bool wrap, bool same_bucket,
    bool deduplicate) {
  Sorted sorted(query_key, value, order, first, key_mask, dropout_seed, dropout_p);
  sorted.chunked(chunk_size, before, after, causal, wrap, same_bucket, deduplicate);
  return attend(sorted.problem, query_key);
}

std::tuple<Tensor, Tensor> backward(
    Tensor grad_out, OptionalTensor grad_lse, Tensor query_key, Tensor value, Tensor out, Tensor lse, Tensor order,
    Tensor first, OptionalTensor key_mask, OptionalTensor dropout_seed, double dropout_p, int64_t chunk_size,
    int64_t before, int64_t after, bool causal, bool wrap, bool same_bucket, bool deduplicate) {
  Sorted sorted(query_key, value, order, first, key_mask, dropout_seed, dropout_p);
  sorted.chunked(chunk_size, before, after, causal, wrap, same_bucket, deduplicate);
  const auto [grad_query_key, grad_value, none] =
      attend_backward(sorted.problem, grad_out, grad_lse, query_key, std::nullopt, value, out, lse);
  return {grad_query_key, grad_value};
}

std::tuple<Tensor, Tensor> bucket_forward(
    Tensor query_key, Tensor value, Tensor order, Tensor first, OptionalTensor key_mask, OptionalTensor dropout_seed,
    double dropout_p, int64_t window) {
  Sorted sorted(query_key, value, order, first, key_mask, dropout_seed, dropout_p);
  sorted.strict(window);
  return attend(sorted.problem, query_key);
}

std::tuple<Tensor, Tensor> bucket_backward(
    Tensor grad_out, OptionalTensor grad_lse, Tensor query_key, Tensor value, Tensor out, Tensor lse, Tensor order,
    Tensor first, OptionalTensor key_mask, OptionalTensor dropout_seed, double dropout_p, int64_t window) {
  Sorted sorted(query_key, value, order, first, key_mask, dropout_seed, dropout_p);
  sorted.strict(window);
  const auto [grad_query_key, grad_value, none] =
      attend_backward(sorted.problem, grad_out, grad_lse, query_key, std::nullopt, value, out, lse);
  return {grad_query_key, grad_value};
}

}  // namespace
}  // namespace longspan::cpu

STABLE_TORCH_LIBRARY_IMPL(longspan, CPU, m) {
  m.impl("lsh_attention", TORCH_BOX(&longspan::cpu::forward));
  m.impl("lsh_attention_backward", TORCH_BOX(&longspan::cpu::backward));
  m.impl("bucket_attention", TORCH_BOX(&longspan::cpu::bucket_forward));
  m.impl("bucket_attention_backward", TORCH_BOX(&longspan::cpu::bucket_backward));
}
