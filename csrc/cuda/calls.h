// One call of an operator that takes query, key and value: its tensors in the form that kernels want, the problem that
// refers to them, and its results. What the operator adds to the problem is its own.
#pragma once
#include <tuple>

#include "cuda/tensors.h"

namespace longspan::cuda {
namespace {  // as hidden as the types of the stable ABI

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
  // What follows from a problem that the operator has completed.
  template <class T>
  void launch(const Problem<T>& problem, void* stream) const {
    in_shares(problem, shares_of(problem, Role::queries, false), stream, [&](const Problem<T>& part) {
      launch_forward(part, stream);
    });
  }

  // Calls launch(the problem), or launch(its parts): whose keys are cut into shares, each with results of its own.
  template <class T, template <class> class P, class Launch>
  void in_shares(const P<T>& problem, int shares, void* stream, Launch&& launch) const {
    if (shares == 1) return launch(problem);
    const Tensor sums = new_rows(query, shares), lses = new_wide(query, shares);
    P<T> parts = problem;
    parts.pattern.shares = shares, parts.last = false;
    parts.running = rows_of<Wide<T>>(sums), parts.lse = data_of<Wide<T>>(lses);
    launch(parts);
    launch_merge_shares<T>(problem, parts, stream);
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
  // What follows from a problem that the operator has completed.
  template <class T>
  void launch(const Problem<T>& problem, void* stream) const {
    for (const Role role : {Role::queries, Role::keys}) {
      const int shares = shares_of(problem, role, true);
      if (shares == 1) {
        launch_backward(problem, role, stream);
        continue;
      }
      const bool of_queries = role == Role::queries;
      const Tensor sums = new_sums(of_queries ? query : key, shares),
                   value_sums = new_sums(value, of_queries ? 0 : shares);
      Problem<T> parts = problem;
      parts.pattern.shares = shares;
      parts.query_sums = rows_of<Wide<T>>(sums), parts.value_sums = rows_of<Wide<T>>(value_sums);
      launch_backward(parts, role, stream);
      const int tokens = of_queries ? parts.pattern.T : parts.pattern.S;
      const Rows<T>& to = of_queries ? parts.grad_query : parts.grad_key;
      launch_sum_shares(parts, tokens, rows_of<const Wide<T>>(sums), to, stream);
      if (!of_queries) launch_sum_shares(parts, tokens, rows_of<const Wide<T>>(value_sums), parts.grad_value, stream);
    }
  }

  std::tuple<Tensor, Tensor, Tensor> results() const {
    return {moved(query_rows, grad_query), moved(key_rows, grad_key), moved(value_rows, grad_value)};
  }
};

}  // namespace
}  // namespace longspan::cuda
