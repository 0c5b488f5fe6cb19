// Attention for heads wider than any tile: a warp owns a row and walks its columns one by one, the features of the sums
// in shared memory. Slow, for any head size; the same patterns and the same results as forward.cuh and backward.cuh. P
// is a Problem, or what is made of one: then what follows up to the kernels has overloads for it.
#pragma once
#include "cuda/problem.cuh"

namespace longspan::cuda {

constexpr int kWideRows = 4;  // of a block: one for each warp

// What a query meets as a key: the sum of two rows, either of which may be missing.
template <class T>
struct KeyRow {
  const T *key, *position;
  __device__ __forceinline__ Wide<T> operator[](int d) const {
    return (key ? Wide<T>(key[d]) : Wide<T>(0)) + (position ? Wide<T>(position[d]) : Wide<T>(0));
  }
};
template <class T>
__device__ __forceinline__ KeyRow<T> wide_key(
    const Problem<T>& problem, const Work& work, const Query<T>&, const Key<T>& key) {
  return {problem.key.at(work, key.token), nullptr};
}

// What is added to a score, in units of log 2.
template <class T>
__device__ __forceinline__ Wide<T> wide_bias(
    const Problem<T>& problem, const Work& work, const Query<T>& query, const Key<T>& key) {
  if (!problem.pattern.chunks.deduplicate) return 0;
  return -log2_fast(Wide<T>(problem.pattern.copies(work, query.token, key.token)));
}

// From the products of a pair to p keep and ds.
template <class T>
__device__ __forceinline__ void wide_weigh(
    const Problem<T>& problem, const Work& work, const Query<T>& query, const Key<T>& key, Wide<T>& score,
    Wide<T>& gradient, Wide<T>&) {
  const Wide<T> p = probability(score * key.factor + wide_bias(problem, work, query, key), query);
  const Wide<T> keep = problem.dropout_seed ? keep_of(problem, query, key.token) : Wide<T>(1);
  score = p * keep;
  gradient = p * (gradient * keep - query.delta);
}

// What else the gradients of a query's pairs add up to.
template <class T>
__device__ __forceinline__ void wide_finish(const Problem<T>&, const Work&, const Query<T>&, Wide<T>) {}

// sum_d a[d] b[d], in all lanes.
template <class W, class A, class B>
__device__ __forceinline__ W wide_product(const A& a, const B& b, int head_size) {
  W sum = 0;
  for (int d = lane_id(); d < head_size; d += 32) sum += W(a[d]) * W(b[d]);
  return warp_sum(sum);
}

// p keep and ds of a pair that sees each other; adds to `slope`.
template <class T>
struct Weights {
  Wide<T> kept, ds;
};
template <class P, class AnyQuery, class T>
__device__ __forceinline__ Weights<T> wide_weights(
    const P& problem, const Work& work, const AnyQuery& query, const Key<T>& key, Wide<T>& slope) {
  using W = Wide<T>;
  const T *row = problem.query.at(work, query.token), *grad_out = problem.grad_out.at(work, query.token);
  W score = wide_product<W>(row, wide_key(problem, work, query, key), problem.D), gradient = 0;
  if (key.token >= 0) gradient = wide_product<W>(grad_out, problem.value.at(work, key.token), problem.D);
  wide_weigh(problem, work, query, key, score, gradient, slope);
  return {score, gradient};
}

// Calls body(column) for each column that the row of this warp sees, or that sees it. Every lane of a warp has the same
// row and column.
template <Role role, bool backward, class P, class Row, class Body>
__device__ __forceinline__ void wide_walk(
    const P& problem, const Work& work, uint32_t stream, const Row& row, Body&& body) {
  constexpr bool rows_are_queries = role == Role::queries;
  for (int column = work.begin; column < work.end; ++column) {
    const auto item = item_of<!rows_are_queries, backward>(
        problem, work, problem.pattern.template column<role>(work, column), stream);
    bool seen;
    if constexpr (rows_are_queries)
      seen = row.sees(item);
    else
      seen = item.sees(row);
    if (seen) body(item);
  }
}

template <class T, class P>
__global__ void __launch_bounds__(32 * kWideRows, 4) wide_forward(const LONGSPAN_GRID_CONSTANT P problem) {
  using W = Wide<T>;
  LONGSPAN_SHARED(shared);
  Carver carver(shared);
  W* sums = carver.take<W>(size_t(kWideRows) * problem.D) + size_t(warp_id()) * problem.D;
  const Pattern& pattern = problem.pattern;
  Work work;
  if (!pattern.start<Role::queries>(work, blockIdx.x) || warp_id() >= work.rows) return;
  const uint32_t stream = head_stream(problem.dropout_seed, work);
  const auto query = item_of<true, false>(problem, work, pattern.row<Role::queries>(work, warp_id()), stream);
  const T* row = problem.query.at(work, query.token);
  const W earlier = problem.resume ? problem.lse[pattern.at(work, query.token)] : minus_infinity<W>();
  const bool resume = earlier > minus_infinity<W>();
  W maximum = resume ? earlier * kLog2e<W> : minus_infinity<W>(), total = resume ? 1 : 0;
  for (int d = lane_id(); d < problem.D; d += 32) sums[d] = resume ? problem.running.at(work, query.token)[d] : W(0);

  wide_walk<Role::queries, false>(problem, work, stream, query, [&](const Key<T>& key) {
    const W bias = wide_bias(problem, work, query, key);
    if (bias == minus_infinity<W>()) return;
    const W score = wide_product<W>(row, wide_key(problem, work, query, key), problem.D) * key.factor + bias;
    const W highest = score > maximum ? score : maximum;
    const W shrink = exp2_fast(maximum - highest), p = exp2_fast(score - highest);
    const W weight = problem.dropout_seed ? p * keep_of(problem, query, key.token) : p;
    maximum = highest, total = total * shrink + p;
    const T* value = key.token >= 0 ? problem.value.at(work, key.token) : nullptr;
    for (int d = lane_id(); d < problem.D; d += 32) sums[d] = sums[d] * shrink + (value ? weight * W(value[d]) : W(0));
  });

  const bool alone = total == 0;
  const W inverse = alone ? W(0) : W(1) / total;
  if (lane_id() == 0)
    problem.lse[pattern.at(work, query.token)] = alone ? minus_infinity<W>() : (maximum + log2_fast(total)) / kLog2e<W>;
  for (int d = lane_id(); d < problem.D; d += 32) {
    const W x = sums[d] * inverse;
    if (!problem.last)
      problem.running.at(work, query.token)[d] = x;
    else
      problem.out.at(work, query.token)[d] = alone && pattern.shared ? problem.value.at(work, query.token)[d] : T(x);
  }
}

template <class T, class P>
__global__ void __launch_bounds__(32 * kWideRows, 4) wide_backward_queries(const LONGSPAN_GRID_CONSTANT P problem) {
  using W = Wide<T>;
  LONGSPAN_SHARED(shared);
  Carver carver(shared);
  W* sums = carver.take<W>(size_t(kWideRows) * problem.D) + size_t(warp_id()) * problem.D;
  const Pattern& pattern = problem.pattern;
  Work work;
  if (!pattern.start<Role::queries>(work, blockIdx.x) || warp_id() >= work.rows) return;
  const uint32_t stream = head_stream(problem.dropout_seed, work);
  const auto query = item_of<true, true>(problem, work, pattern.row<Role::queries>(work, warp_id()), stream);
  W slope = 0;
  for (int d = lane_id(); d < problem.D; d += 32) sums[d] = 0;
  wide_walk<Role::queries, true>(problem, work, stream, query, [&](const Key<T>& key) {
    const W weight = wide_weights(problem, work, query, key, slope).ds * (key.factor / kLog2e<W>);
    const KeyRow<T> row = wide_key(problem, work, query, key);
    for (int d = lane_id(); d < problem.D; d += 32) sums[d] += weight * row[d];
  });
  for (int d = lane_id(); d < problem.D; d += 32) {
    if (problem.query_sums.data)
      problem.query_sums.at(work, query.token)[d] += sums[d];
    else
      problem.grad_query.at(work, query.token)[d] = T(sums[d]);
  }
  if (lane_id() == 0) wide_finish(problem, work, query, slope);
}

template <class T, class P>
__global__ void __launch_bounds__(32 * kWideRows, 4) wide_backward_keys(const LONGSPAN_GRID_CONSTANT P problem) {
  using W = Wide<T>;
  LONGSPAN_SHARED(shared);
  Carver carver(shared);
  W* key_sums = carver.take<W>(size_t(kWideRows) * problem.D) + size_t(warp_id()) * problem.D;
  W* value_sums = carver.take<W>(size_t(kWideRows) * problem.D) + size_t(warp_id()) * problem.D;
  const Pattern& pattern = problem.pattern;
  Work work;
  if (!pattern.start<Role::keys>(work, blockIdx.x) || warp_id() >= work.rows) return;
  const uint32_t stream = head_stream(problem.dropout_seed, work);
  const Key<T> key = item_of<false, true>(problem, work, pattern.row<Role::keys>(work, warp_id()), stream);
  const int token = pattern.row_token(work, warp_id());
  W slope = 0;
  for (int d = lane_id(); d < problem.D; d += 32) key_sums[d] = value_sums[d] = 0;
  wide_walk<Role::keys, true>(problem, work, stream, key, [&](const auto& query) {
    const Weights<T> weights = wide_weights(problem, work, query, key, slope);
    const T *row = problem.query.at(work, query.token), *gradient = problem.grad_out.at(work, query.token);
    for (int d = lane_id(); d < problem.D; d += 32) {
      key_sums[d] += weights.ds * W(row[d]);
      value_sums[d] += weights.kept * W(gradient[d]);
    }
  });
  const W factor = key.token >= 0 ? key.factor / kLog2e<W> : W(0);
  const T* own = problem.key.at(work, token);
  W along = 0;
  if (pattern.shared) along = wide_product<W>(own, key_sums, problem.D) * factor * factor * factor;
  for (int d = lane_id(); d < problem.D; d += 32) {
    W x = key_sums[d] * factor;
    if (pattern.shared) x -= W(own[d]) * along;
    if (problem.query_sums.data) {
      problem.query_sums.at(work, token)[d] += x;
      problem.value_sums.at(work, token)[d] += value_sums[d];
    } else {
      problem.grad_key.at(work, token)[d] = T(x);
      problem.grad_value.at(work, token)[d] = T(value_sums[d]);
    }
  }
}

}  // namespace longspan::cuda
