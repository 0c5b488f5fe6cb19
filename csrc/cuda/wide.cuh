// Attention for heads wider than any tile: a warp owns a row and walks its columns one by one, the features of the sums
// in shared memory. Slow, for any head size; the same patterns and the same results as forward.cuh and backward.cuh.
#pragma once
#include "cuda/problem.cuh"

namespace longspan::cuda {

constexpr int kWideRows = 4;  // of a block: one for each warp

// A score in units of log 2; -inf where the query does not see the key.
template <class T>
__device__ __forceinline__ Wide<T> wide_score(
    const Problem<T>& problem, const Work& work, const Query<T>& query, const Key<T>& key, Wide<T> product) {
  if (!query.sees(key)) return minus_infinity<Wide<T>>();
  if (!problem.pattern.chunks.deduplicate) return product * key.factor;
  return product * key.factor - log2_fast(Wide<T>(problem.pattern.copies(work, query.token, key.token)));
}

template <class T>
__device__ __forceinline__ Wide<T> wide_keep(const Problem<T>& problem, const Query<T>& query, const Key<T>& key) {
  return problem.dropout_seed ? keep_of(problem, query, key.token) : Wide<T>(1);
}

// sum_d a[d] b[d], in all lanes.
template <class T>
__device__ __forceinline__ Wide<T> wide_product(const T* a, const T* b, int head_size) {
  Wide<T> sum = 0;
  for (int d = lane_id(); d < head_size; d += 32) sum += Wide<T>(a[d]) * Wide<T>(b[d]);
  return warp_sum(sum);
}

// Calls body(column) for each column that the row of this warp meets. Every lane of a warp has the same row and column.
template <Role role, bool backward, class T, class Body>
__device__ __forceinline__ void wide_walk(const Problem<T>& problem, const Work& work, uint32_t stream, Body&& body) {
  constexpr bool is_key = role == Role::queries;
  for (int column = work.begin; column < work.end; ++column) {
    const auto item =
        item_of<!is_key, backward>(problem, work, problem.pattern.template column<role>(work, column), stream);
    if (item.token >= 0) body(item);
  }
}

template <class T>
__global__ void __launch_bounds__(32 * kWideRows, 4) wide_forward(const LONGSPAN_GRID_CONSTANT Problem<T> problem) {
  using W = Wide<T>;
  LONGSPAN_SHARED(shared);
  Carver carver(shared);
  W* sums = carver.take<W>(size_t(kWideRows) * problem.D) + size_t(warp_id()) * problem.D;
  const Pattern& pattern = problem.pattern;
  Work work;
  if (!pattern.start<Role::queries>(work, blockIdx.x) || warp_id() >= work.rows) return;
  const uint32_t stream = head_stream(problem.dropout_seed, work);
  const Query<T> query = item_of<true, false>(problem, work, pattern.row<Role::queries>(work, warp_id()), stream);
  const T* row = problem.query.at(work, query.token);
  const W earlier = problem.resume ? problem.lse[pattern.at(work, query.token)] : minus_infinity<W>();
  const bool resume = earlier > minus_infinity<W>();
  W maximum = resume ? earlier * kLog2e<W> : minus_infinity<W>(), total = resume ? 1 : 0;
  for (int d = lane_id(); d < problem.D; d += 32) sums[d] = resume ? problem.running.at(work, query.token)[d] : W(0);

  wide_walk<Role::queries, false>(problem, work, stream, [&](const Key<T>& key) {
    const W product = wide_product(row, problem.key.at(work, key.token), problem.D);
    const W score = wide_score(problem, work, query, key, product);
    if (score == minus_infinity<W>()) return;
    const W highest = score > maximum ? score : maximum;
    const W shrink = exp2_fast(maximum - highest), p = exp2_fast(score - highest);
    const W weight = p * wide_keep(problem, query, key);
    maximum = highest, total = total * shrink + p;
    const T* value = problem.value.at(work, key.token);
    for (int d = lane_id(); d < problem.D; d += 32) sums[d] = sums[d] * shrink + weight * W(value[d]);
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

// p keep and ds of a pair; 0 where the query does not see the key.
template <class T>
struct Weights {
  Wide<T> kept, ds;
};
template <class T>
__device__ __forceinline__ Weights<T> wide_weights(
    const Problem<T>& problem, const Work& work, const Query<T>& query, const Key<T>& key) {
  using W = Wide<T>;
  const W product = wide_product(problem.query.at(work, query.token), problem.key.at(work, key.token), problem.D);
  const W gradient = wide_product(problem.grad_out.at(work, query.token), problem.value.at(work, key.token), problem.D);
  const W score = wide_score(problem, work, query, key, product);
  const W p = score == minus_infinity<W>() ? W(0) : exp2_fast(score - query.lse);
  const W keep = wide_keep(problem, query, key);
  return {p * keep, p * (gradient * keep - query.delta)};
}

template <class T>
__global__ void __launch_bounds__(32 * kWideRows, 4)
    wide_backward_queries(const LONGSPAN_GRID_CONSTANT Problem<T> problem) {
  using W = Wide<T>;
  LONGSPAN_SHARED(shared);
  Carver carver(shared);
  W* sums = carver.take<W>(size_t(kWideRows) * problem.D) + size_t(warp_id()) * problem.D;
  const Pattern& pattern = problem.pattern;
  Work work;
  if (!pattern.start<Role::queries>(work, blockIdx.x) || warp_id() >= work.rows) return;
  const uint32_t stream = head_stream(problem.dropout_seed, work);
  const Query<T> query = item_of<true, true>(problem, work, pattern.row<Role::queries>(work, warp_id()), stream);
  for (int d = lane_id(); d < problem.D; d += 32) sums[d] = 0;
  wide_walk<Role::queries, true>(problem, work, stream, [&](const Key<T>& key) {
    const W weight = wide_weights(problem, work, query, key).ds * (key.factor / kLog2e<W>);
    const T* row = problem.key.at(work, key.token);
    for (int d = lane_id(); d < problem.D; d += 32) sums[d] += weight * W(row[d]);
  });
  for (int d = lane_id(); d < problem.D; d += 32) {
    if (problem.query_sums.data)
      problem.query_sums.at(work, query.token)[d] += sums[d];
    else
      problem.grad_query.at(work, query.token)[d] = T(sums[d]);
  }
}

template <class T>
__global__ void __launch_bounds__(32 * kWideRows, 4)
    wide_backward_keys(const LONGSPAN_GRID_CONSTANT Problem<T> problem) {
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
  for (int d = lane_id(); d < problem.D; d += 32) key_sums[d] = value_sums[d] = 0;
  if (key.token >= 0)
    wide_walk<Role::keys, true>(problem, work, stream, [&](const Query<T>& query) {
      const Weights<T> weights = wide_weights(problem, work, query, key);
      const T *row = problem.query.at(work, query.token), *gradient = problem.grad_out.at(work, query.token);
      for (int d = lane_id(); d < problem.D; d += 32) {
        key_sums[d] += weights.ds * W(row[d]);
        value_sums[d] += weights.kept * W(gradient[d]);
      }
    });
  const W factor = key.token >= 0 ? key.factor / kLog2e<W> : W(0);
  const T* own = problem.key.at(work, token);
  W along = 0;
  if (pattern.shared) {
    for (int d = lane_id(); d < problem.D; d += 32) along += W(own[d]) * key_sums[d];
    along = warp_sum(along) * factor * factor * factor;
  }
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
