// One call of an operator that takes query, key and value: its tensors in the form that kernels want, the problem that
// refers to them, and its results. What the operator adds to the problem is its own.
#pragma once
#include <tuple>

#include "cuda/tensors.h"

namespace longspan::cuda {

struct ForwardCall {
  Tensor out, lse, query, key, value, rows;  // rows: another tensor than out only where its last dimension is strided
  OptionalTensor key_mask, dropout_seed;
  double scale, dropout_p;

  ForwardCall(
      const Tensor& query, const Tensor& key, const Tensor& value, const OptionalTensor& key_mask,
      const OptionalTensor& dropout_seed, double scale, double dropout_p)
      : out(torch::stable::empty_like(query)),
        lse(new_wide(query)),
        query(with_rows(query)),
        key(with_rows(key)),
        value(with_rows(value)),
        rows(with_rows(out)),
        key_mask(contiguous(key_mask)),
        dropout_seed(dropout_seed),
        scale(scale),
        dropout_p(dropout_p) {}

  template <class T>
  Problem<T> problem() const {
    Problem<T> problem = describe<T>(query, key.size(2), key_mask, dropout_seed, scale, dropout_p);
    problem.aligned = aligned_rows(query, key, value, rows);
    problem.query = rows_of<const T>(query), problem.key = rows_of<const T>(key);
    problem.value = rows_of<const T>(value), problem.out = rows_of<T>(rows);
    problem.lse = data_of<Wide<T>>(lse);
    return problem;
  }
  std::tuple<Tensor, Tensor> results() const { return {moved(rows, out), lse}; }
};

struct BackwardCall {
  Tensor grad_query, grad_key, grad_value, delta;
  Tensor grad_out, query, key, value, out, lse, query_rows, key_rows, value_rows;
  OptionalTensor grad_lse, key_mask, dropout_seed;
  double scale, dropout_p;

  BackwardCall(
      const Tensor& grad_out, const OptionalTensor& grad_lse, const Tensor& query, const Tensor& key,
      const Tensor& value, const Tensor& out, const Tensor& lse, const OptionalTensor& key_mask,
      const OptionalTensor& dropout_seed, double scale, double dropout_p)
      : grad_query(torch::stable::empty_like(query)),
        grad_key(torch::stable::empty_like(key)),
        grad_value(torch::stable::empty_like(value)),
        delta(new_wide(query)),
        grad_out(with_rows(grad_out)),
        query(with_rows(query)),
        key(with_rows(key)),
        value(with_rows(value)),
        out(with_rows(out)),
        lse(torch::stable::contiguous(lse)),
        query_rows(with_rows(grad_query)),
        key_rows(with_rows(grad_key)),
        value_rows(with_rows(grad_value)),
        grad_lse(contiguous(grad_lse)),
        key_mask(contiguous(key_mask)),
        dropout_seed(dropout_seed),
        scale(scale),
        dropout_p(dropout_p) {}

  // Computes delta on `stream`, too.
  template <class T>
  Problem<T> problem(void* stream) const {
    Problem<T> problem = describe<T>(query, key.size(2), key_mask, dropout_seed, scale, dropout_p);
    problem.aligned = aligned_rows(query, key, value, grad_out, query_rows, key_rows, value_rows);
    problem.query = rows_of<const T>(query), problem.key = rows_of<const T>(key);
    problem.value = rows_of<const T>(value), problem.grad_out = rows_of<const T>(grad_out);
    problem.lse = data_of<Wide<T>>(lse), problem.delta = data_of<Wide<T>>(delta);
    problem.grad_query = rows_of<T>(query_rows), problem.grad_key = rows_of<T>(key_rows);
    problem.grad_value = rows_of<T>(value_rows);
    launch_query_deltas(
        problem, rows_of<const T>(out), data_of<const Wide<T>>(grad_lse), data_of<Wide<T>>(delta), stream);
    return problem;
  }
  std::tuple<Tensor, Tensor, Tensor> results() const {
    return {moved(query_rows, grad_query), moved(key_rows, grad_key), moved(value_rows, grad_value)};
  }
};

}  // namespace longspan::cuda
