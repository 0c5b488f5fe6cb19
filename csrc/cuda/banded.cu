// longspan::banded_attention on a GPU, as models/longspan/ops/banded.py defines it; and longspan::dense_attention,
// which is a band without limits.
#include <algorithm>
#include <tuple>
#include <vector>

#include "cuda/calls.h"
#include "cuda/operators.h"

namespace longspan::cuda {
namespace {

using Ints = std::vector<int64_t>;

// Calls launch(problem) for as many heads at a time as fit into the arguments of a kernel.
template <class T, class Launch>
void over_heads(Problem<T> problem, const Ints& left, const Ints& right, const Ints& dilation, Launch&& launch) {
  Pattern& pattern = problem.pattern;
  const size_t heads = size_t(pattern.H);
  STD_TORCH_CHECK(
      left.size() == heads && right.size() == heads && dilation.size() == heads,
      "banded_attention: one left, right and dilation per head wanted");
  const int64_t everything = int64_t(pattern.T) + pattern.S;  // a wider window is cut to where it reaches everything
  for (int first = 0; first < pattern.H; first += kMostHeads) {
    pattern.first_head = first, pattern.heads = std::min(kMostHeads, pattern.H - first);
    for (int i = 0; i < pattern.heads; ++i) {
      STD_TORCH_CHECK(dilation[first + i] >= 1, "banded_attention: a dilation of at least 1 wanted");
      pattern.bands.left[i] = int(std::min(left[first + i], everything));
      pattern.bands.right[i] = int(std::min(right[first + i], everything));
      pattern.bands.step[i] = int(std::min(dilation[first + i], std::max<int64_t>(1, everything)));
    }
    launch(problem);
  }
}

void check(const Tensor& query, const Tensor& key) {
  STD_TORCH_CHECK(
      key.size(0) == query.size(0) && key.size(1) == query.size(1) && key.size(3) == query.size(3),
      "banded_attention: keys and values of the queries' batch, heads and head size wanted");
}

std::tuple<Tensor, Tensor> forward(
    Tensor query, Tensor key, Tensor value, OptionalTensor key_mask, OptionalTensor dropout_seed, double scale,
    double dropout_p, Ints left, Ints right, Ints dilation) {
  check(query, key);
  const OnDevice device(query);
  const ForwardCall call(query, key, value, key_mask, dropout_seed, scale, dropout_p);
  with_element_type(query, [&](auto element) {
    over_heads(call.problem<decltype(element)>(), left, right, dilation, [&](const auto& part) {
      call.launch(part, device.stream);
    });
  });
  return call.results();
}

std::tuple<Tensor, Tensor, Tensor> backward(
    Tensor grad_out, OptionalTensor grad_lse, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse,
    OptionalTensor key_mask, OptionalTensor dropout_seed, double scale, double dropout_p, Ints left, Ints right,
    Ints dilation) {
  check(query, key);
  const OnDevice device(query);
  const BackwardCall call(grad_out, grad_lse, query, key, value, out, lse, key_mask, dropout_seed, scale, dropout_p);
  with_element_type(query, [&](auto element) {
    over_heads(call.problem<decltype(element)>(device.stream), left, right, dilation, [&](const auto& part) {
      call.launch(part, device.stream);
    });
  });
  return call.results();
}

// Every query against every key: a band that reaches everything.
struct Unlimited {
  Ints reach, dilation;
  Unlimited(const Tensor& query, const Tensor& key)
      : reach(size_t(query.size(1)), query.size(2) + key.size(2)), dilation(size_t(query.size(1)), 1) {}
};

std::tuple<Tensor, Tensor> dense_forward(
    Tensor query, Tensor key, Tensor value, OptionalTensor key_mask, OptionalTensor dropout_seed, double scale,
    double dropout_p) {
  const Unlimited band(query, key);
  return forward(query, key, value, key_mask, dropout_seed, scale, dropout_p, band.reach, band.reach, band.dilation);
}

std::tuple<Tensor, Tensor, Tensor> dense_backward(
    Tensor grad_out, OptionalTensor grad_lse, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse,
    OptionalTensor key_mask, OptionalTensor dropout_seed, double scale, double dropout_p) {
  const Unlimited band(query, key);
  return backward(
      grad_out, grad_lse, query, key, value, out, lse, key_mask, dropout_seed, scale, dropout_p, band.reach, band.reach,
      band.dilation);
}

}  // namespace
}  // namespace longspan::cuda

LONGSPAN_REGISTER(m) {
  m.impl("banded_attention", TORCH_BOX(&longspan::cuda::forward));
  m.impl("banded_attention_backward", TORCH_BOX(&longspan::cuda::backward));
  m.impl("dense_attention", TORCH_BOX(&longspan::cuda::dense_forward));
  m.impl("dense_attention_backward", TORCH_BOX(&longspan::cuda::dense_backward));
}
