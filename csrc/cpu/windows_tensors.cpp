#include "cpu/windows_tensors.h"

#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>
#include <vector>

namespace longspan::cpu {
namespace {

using torch::stable::Tensor;
#include "cpu/staging.h"

// delta = sum of out * grad_out, minus grad_lse; and the gradient of a token that was its own value.
template <class T>
void prepare_backward(const WindowsProblem& problem, const Rows& out, const T* grad_lse, T* delta) {
  torch::stable::parallel_for(0, problem.B * problem.H * problem.T, 1024, [&](int64_t begin, int64_t end) {
    std::vector<T> a(problem.D), b(problem.D);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t token = i % problem.T, head = i / problem.T % problem.H, batch = i / problem.T / problem.H;
      read_row(a.data(), row_of(out, batch, head, token), out.dtype, problem.D);
      read_row(b.data(), row_of(problem.grad_out, batch, head, token), problem.grad_out.dtype, problem.D);
      T sum = 0;
      for (int64_t d = 0; d < problem.D; ++d) sum += a[d] * b[d];
      delta[i] = grad_lse ? sum - grad_lse[i] : sum;
      if (!problem.shared || static_cast<const T*>(problem.lse)[i] != -INFINITY) continue;
      T* to = reinterpret_cast<T*>(row_of(problem.grad_value, batch, head, token));
      for (int64_t d = 0; d < problem.D; ++d) to[d] += b[d];
    }
  });
}

bool is_wide(const Tensor& tensor) { return tensor.scalar_type() == statistics_of(tensor) && tensor.stride(3) == 1; }

// A tensor of sums for `grad`: itself, where it has the dtype of the statistics.
Tensor sums_for(Tensor& grad) {
  if (is_wide(grad)) return torch::stable::zero_(grad);
  return torch::stable::new_zeros(grad, {grad.size(0), grad.size(1), grad.size(2), grad.size(3)}, statistics_of(grad));
}

Tensor finished(const Tensor& sums, Tensor grad) {
  if (sums.data_ptr() != grad.data_ptr()) torch::stable::copy_(grad, sums);
  return grad;
}

}  // namespace

void describe(
    WindowsProblem& problem, const Tensor& query, const OptionalTensor& key_mask, const OptionalTensor& dropout_seed,
    double dropout_p) {
  problem.B = query.size(0), problem.H = query.size(1), problem.T = query.size(2), problem.D = query.size(3);
  if (key_mask) problem.key_mask = static_cast<const bool*>(key_mask->data_ptr());
  if (dropout_seed) problem.dropout = make_dropout(*static_cast<const int64_t*>(dropout_seed->data_ptr()), dropout_p);
}

std::tuple<Tensor, Tensor> attend(WindowsProblem problem, const Tensor& query) {
  Tensor out = torch::stable::empty_like(query);
  Tensor lse = torch::stable::new_empty(query, {problem.B, problem.H, problem.T}, statistics_of(query));
  Tensor sum = torch::stable::empty_like(lse);
  Tensor rows = is_wide(out) ? out
                             : torch::stable::new_empty(
                                   query, {problem.B, problem.H, problem.T, problem.D}, statistics_of(query));
  problem.out = rows_of(rows), problem.lse = lse.data_ptr(), problem.sum = sum.data_ptr();
  windows_forward(problem);
  return {finished(rows, out), lse};
}

std::tuple<Tensor, Tensor, OptionalTensor> attend_backward(
    WindowsProblem problem, Tensor grad_out, OptionalTensor grad_lse, const Tensor& query, const OptionalTensor& key,
    const Tensor& value, Tensor out, Tensor lse) {
  Tensor grad_query = torch::stable::empty_like(query), grad_value = torch::stable::empty_like(value);
  OptionalTensor grad_key = key ? OptionalTensor(torch::stable::empty_like(*key)) : std::nullopt;
  grad_out = with_rows(grad_out), out = with_rows(out);
  lse = torch::stable::contiguous(lse), grad_lse = contiguous(grad_lse);
  Tensor query_sums = sums_for(grad_query), value_sums = sums_for(grad_value);
  OptionalTensor key_sums = grad_key ? OptionalTensor(sums_for(*grad_key)) : std::nullopt;
  Tensor delta = torch::stable::empty_like(lse);
  problem.grad_out = rows_of(grad_out), problem.lse = lse.data_ptr(), problem.delta = delta.data_ptr();
  problem.grad_query = rows_of(query_sums), problem.grad_value = rows_of(value_sums);
  if (key_sums) problem.grad_key = rows_of(*key_sums);
  auto prepare = [&](auto zero) {
    using T = decltype(zero);
    prepare_backward<T>(
        problem, rows_of(out), grad_lse ? static_cast<const T*>(grad_lse->data_ptr()) : nullptr,
        static_cast<T*>(delta.data_ptr()));
  };
  if (problem.query.dtype == Dtype::f64)
    prepare(double());
  else
    prepare(float());
  windows_backward(problem);
  return {
      finished(query_sums, grad_query), finished(value_sums, grad_value),
      key ? OptionalTensor(finished(*key_sums, *grad_key)) : std::nullopt};
}

}  // namespace longspan::cpu
