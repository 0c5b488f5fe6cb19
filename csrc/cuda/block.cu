// longspan::block_attention on a GPU, as models/longspan/ops/block.py defines it: chunks in the tokens' own order.
#include <algorithm>
#include <tuple>

#include "cuda/operators.h"
#include "cuda/tensors.h"

namespace longspan::cuda {
namespace {

struct Blocks {
  int64_t size, before, after;
  bool causal, wrap;

  void describe(Pattern& pattern) const {
    Chunks& chunks = pattern.chunks;
    pattern.chunked = true, pattern.causal = causal;
    chunks.R = 1, chunks.reach = kNobody, chunks.wrap = wrap;
    chunks.chunk = int(std::max<int64_t>(1, std::min<int64_t>(size, pattern.T)));
    const int64_t most = wrap ? int64_t(1) << 20 : pattern.num_chunks();  // neighbours that no chunk has
    STD_TORCH_CHECK(!wrap || before + after < most, "block_attention: fewer than ", most, " neighbours wanted");
    chunks.before = int(std::min(before, most)), chunks.after = int(std::min(after, most));
  }
};

std::tuple<Tensor, Tensor> forward(
    Tensor query, Tensor key, Tensor value, OptionalTensor key_mask, OptionalTensor dropout_seed, double scale,
    double dropout_p, int64_t block_size, int64_t before, int64_t after, bool causal, bool wrap) {
  const OnDevice device(query);
  Tensor out = torch::stable::empty_like(query), lse = new_wide(query);
  query = with_rows(query), key = with_rows(key), value = with_rows(value), key_mask = contiguous(key_mask);
  Tensor rows = with_rows(out);
  with_element_type(query, [&](auto element) {
    using T = decltype(element);
    Problem<T> problem = describe<T>(query, key.size(2), key_mask, dropout_seed, scale, dropout_p);
    Blocks{block_size, before, after, causal, wrap}.describe(problem.pattern);
    problem.aligned = aligned_rows(query, key, value, rows);
    problem.query = rows_of<const T>(query), problem.key = rows_of<const T>(key);
    problem.value = rows_of<const T>(value), problem.out = rows_of<T>(rows);
    problem.lse = data_of<Wide<T>>(lse);
    launch_forward(problem, device.stream);
  });
  return {moved(rows, out), lse};
}

std::tuple<Tensor, Tensor, Tensor> backward(
    Tensor grad_out, OptionalTensor grad_lse, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse,
    OptionalTensor key_mask, OptionalTensor dropout_seed, double scale, double dropout_p, int64_t block_size,
    int64_t before, int64_t after, bool causal, bool wrap) {
  const OnDevice device(query);
  Tensor grad_query = torch::stable::empty_like(query), grad_key = torch::stable::empty_like(key),
         grad_value = torch::stable::empty_like(value), delta = new_wide(query);
  query = with_rows(query), key = with_rows(key), value = with_rows(value), out = with_rows(out);
  grad_out = with_rows(grad_out), lse = torch::stable::contiguous(lse);
  key_mask = contiguous(key_mask), grad_lse = contiguous(grad_lse);
  Tensor query_rows = with_rows(grad_query), key_rows = with_rows(grad_key), value_rows = with_rows(grad_value);
  with_element_type(query, [&](auto element) {
    using T = decltype(element);
    Problem<T> problem = describe<T>(query, key.size(2), key_mask, dropout_seed, scale, dropout_p);
    Blocks{block_size, before, after, causal, wrap}.describe(problem.pattern);
    problem.aligned = aligned_rows(query, key, value, grad_out, query_rows, key_rows, value_rows);
    problem.query = rows_of<const T>(query), problem.key = rows_of<const T>(key);
    problem.value = rows_of<const T>(value), problem.grad_out = rows_of<const T>(grad_out);
    problem.lse = data_of<Wide<T>>(lse), problem.delta = data_of<Wide<T>>(delta);
    problem.grad_query = rows_of<T>(query_rows), problem.grad_key = rows_of<T>(key_rows);
    problem.grad_value = rows_of<T>(value_rows);
    launch_query_deltas(
        problem, rows_of<const T>(out), data_of<const Wide<T>>(grad_lse), data_of<Wide<T>>(delta), device.stream);
    launch_backward(problem, device.stream);
  });
  return {moved(query_rows, grad_query), moved(key_rows, grad_key), moved(value_rows, grad_value)};
}

}  // namespace
}  // namespace longspan::cuda

LONGSPAN_REGISTER(m) {
  m.impl("block_attention", TORCH_BOX(&longspan::cuda::forward));
  m.impl("block_attention_backward", TORCH_BOX(&longspan::cuda::backward));
}
