// longspan::span_attention on a GPU, as models/longspan/ops/span.py defines it. How far heads reach is read on the GPU:
// the host never waits for it.
#include "cuda/span.h"

#include <tuple>

#include "cuda/calls.h"
#include "cuda/operators.h"

namespace longspan::cuda {
namespace {

// Spans, positions, and how far heads reach.
struct Spans {
  Tensor positions, span, far;
  int64_t max_span;
  double ramp;
  bool zero_cache, bidirectional;

  Spans(
      const Tensor& query, const Tensor& positions, const Tensor& span, int64_t max_span, double ramp, bool zero_cache,
      bool bidirectional)
      : positions(torch::stable::contiguous(positions)),
        span(torch::stable::contiguous(span)),
        far(torch::stable::new_empty(query, {query.size(0), query.size(1)}, ScalarType::Int)),
        max_span(max_span),
        ramp(ramp),
        zero_cache(zero_cache),
        bidirectional(bidirectional) {
    STD_TORCH_CHECK(span.scalar_type() == wide_type(query), "span_attention: span in the dtype of the sums wanted");
    STD_TORCH_CHECK(max_span < (int64_t(1) << 29), "span_attention on CUDA: max_span of less than 2^29 wanted");
  }

  bool by_token() const { return span.dim() == 3; }

  template <class T>
  SpanProblem<T> problem(const Problem<T>& call, void* stream) const {
    SpanProblem<T> problem{call};
    const Pattern& pattern = problem.pattern;
    problem.aligned = call.aligned && reinterpret_cast<uintptr_t>(positions.data_ptr()) % 16 == 0;
    problem.positions = data_of<const T>(positions), problem.position_rows = int(positions.size(1));
    problem.position_head = positions.size(0) > 1 ? positions.size(1) * positions.size(2) : 0;
    problem.span = data_of<const Wide<T>>(span);
    problem.span_batch = by_token() ? int64_t(pattern.H) * pattern.T : 0;
    problem.span_head = by_token() ? pattern.T : 1, problem.span_token = by_token();
    problem.ramp = Wide<T>(ramp), problem.inverse_ramp = Wide<T>(1 / ramp), problem.max_span = int(max_span);
    problem.pattern.reaches = {data_of<const int>(far), bidirectional, zero_cache, int(max_span)};
    launch_span_reaches(problem, data_of<int>(far), stream);
    return problem;
  }
};

std::tuple<Tensor, Tensor> forward(
    Tensor query, Tensor key, Tensor value, Tensor positions, Tensor span, OptionalTensor key_mask,
    OptionalTensor dropout_seed, double scale, double dropout_p, int64_t max_span, double ramp, bool zero_cache,
    bool bidirectional) {
  const OnDevice device(query);
  const ForwardCall call(query, key, value, key_mask, dropout_seed, scale, dropout_p);
  const Spans spans(query, positions, span, max_span, ramp, zero_cache, bidirectional);
  with_element_type(query, [&](auto element) {
    using T = decltype(element);
    const SpanProblem<T> problem = spans.problem(call.problem<T>(), device.stream);
    call.in_shares(problem, span_shares_of(problem), device.stream, [&](const SpanProblem<T>& part) {
      launch_span_forward(part, device.stream);
    });
  });
  return call.results();
}

// Gradients of the positions, in sums of some groups of heads first.
template <class T>
Tensor position_gradients(SpanProblem<T> problem, const Tensor& positions, void* stream) {
  Tensor gradients = torch::stable::empty_like(positions);
  if (gradients.numel() == 0) return gradients;
  problem.groups = position_groups(problem);
  const int64_t shape[] = {problem.groups, problem.tables(), problem.lags(), problem.D};
  const Tensor sums = torch::stable::new_empty(positions, shape, wide_type(positions));
  problem.position_sums = data_of<Wide<T>>(sums);
  launch_position_gradients(problem, data_of<T>(gradients), stream);
  return gradients;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    Tensor grad_out, OptionalTensor grad_lse, Tensor query, Tensor key, Tensor value, Tensor positions, Tensor span,
    Tensor out, Tensor lse, OptionalTensor key_mask, OptionalTensor dropout_seed, double scale, double dropout_p,
    int64_t max_span, double ramp, bool zero_cache, bool bidirectional) {
  const OnDevice device(query);
  const BackwardCall call(grad_out, grad_lse, query, key, value, out, lse, key_mask, dropout_seed, scale, dropout_p);
  const Spans spans(query, positions, span, max_span, ramp, zero_cache, bidirectional);
  Tensor by_query = new_wide(query), grad_positions = spans.positions;
  with_element_type(query, [&](auto element) {
    using T = decltype(element);
    SpanProblem<T> problem = spans.problem(call.problem<T>(device.stream), device.stream);
    problem.grad_span = data_of<Wide<T>>(by_query);
    launch_span_backward(problem, device.stream);
    grad_positions = position_gradients(problem, spans.positions, device.stream);
  });
  constexpr int64_t all_but_heads[] = {0, 2};
  Tensor grad_span = spans.by_token() ? by_query : torch::stable::sum(by_query, all_but_heads);
  const auto [grad_query, grad_key, grad_value] = call.results();
  return {grad_query, grad_key, grad_value, grad_positions, grad_span};
}

}  // namespace
}  // namespace longspan::cuda

LONGSPAN_REGISTER(m) {
  m.impl("span_attention", TORCH_BOX(&longspan::cuda::forward));
  m.impl("span_attention_backward", TORCH_BOX(&longspan::cuda::backward));
}
