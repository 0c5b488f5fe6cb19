// longspan::block_attention on a GPU, as models/longspan/ops/block.py defines it: chunks in the tokens' own order.
#include <algorithm>
#include <tuple>

#include "cuda/calls.h"
#include "cuda/operators.h"

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
  const ForwardCall call(query, key, value, key_mask, dropout_seed, scale, dropout_p);
  with_element_type(query, [&](auto element) {
    auto problem = call.problem<decltype(element)>();
    Blocks{block_size, before, after, causal, wrap}.describe(problem.pattern);
    call.launch(problem, device.stream);
  });
  return call.results();
}

std::tuple<Tensor, Tensor, Tensor> backward(
    Tensor grad_out, OptionalTensor grad_lse, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse,
    OptionalTensor key_mask, OptionalTensor dropout_seed, double scale, double dropout_p, int64_t block_size,
    int64_t before, int64_t after, bool causal, bool wrap) {
  const OnDevice device(query);
  const BackwardCall call(grad_out, grad_lse, query, key, value, out, lse, key_mask, dropout_seed, scale, dropout_p);
  with_element_type(query, [&](auto element) {
    auto problem = call.problem<decltype(element)>(device.stream);
    Blocks{block_size, before, after, causal, wrap}.describe(problem.pattern);
    call.launch(problem, device.stream);
  });
  return call.results();
}

}  // namespace
}  // namespace longspan::cuda

LONGSPAN_REGISTER(m) {
  m.impl("block_attention", TORCH_BOX(&longspan::cuda::forward));
  m.impl("block_attention_backward", TORCH_BOX(&longspan::cuda::backward));
}
