// Attention with soft spans for heads wider than any tile: what the kernels of wide.cuh make of a SpanProblem, and the
// gradients of positions.
#pragma once
#include "cuda/span_positions.cuh"
#include "cuda/wide.cuh"

namespace longspan::cuda {

template <class T>
__device__ __forceinline__ KeyRow<T> wide_key(
    const SpanProblem<T>& problem, const Work& work, const SpanQuery<T>& query, const Key<T>& key) {
  KeyRow<T> row{};
  if (key.token >= 0) row.key = problem.key.at(work, key.token);
  if (problem.position_rows)
    row.position = problem.positions + work.head * problem.position_head +
                   int64_t(problem.position_row(key.place - query.place)) * problem.D;
  return row;
}

template <class T>
__device__ __forceinline__ Wide<T> wide_bias(
    const SpanProblem<T>& problem, const Work&, const SpanQuery<T>& query, const Key<T>& key) {
  const Wide<T> m = soft_mask(problem, query, distance_of(problem, query, key.place));
  return m > 0 ? log2_fast(m) : minus_infinity<Wide<T>>();
}

template <class T>
__device__ __forceinline__ void wide_weigh(
    const SpanProblem<T>& problem, const Work&, const SpanQuery<T>& query, const Key<T>& key, Wide<T>& score,
    Wide<T>& gradient, Wide<T>& slope) {
  weigh_pair(problem, false, query, key, score, gradient, slope);
}

template <class T>
__device__ __forceinline__ void wide_finish(
    const SpanProblem<T>& problem, const Work& work, const SpanQuery<T>& query, Wide<T> slope) {
  problem.grad_span[problem.pattern.at(work, query.token)] = slope * problem.inverse_ramp;
}

// A lag for each warp.
template <class T>
__global__ void __launch_bounds__(32 * kWideRows, 4)
    wide_span_backward_positions(const LONGSPAN_GRID_CONSTANT SpanProblem<T> problem) {
  using W = Wide<T>;
  LONGSPAN_SHARED(shared);
  Carver carver(shared);
  W* sums = carver.take<W>(size_t(kWideRows) * problem.D) + size_t(warp_id()) * problem.D;
  const Pattern& pattern = problem.pattern;
  const LagTile tile = lag_tile(problem, blockIdx.x, kWideRows);
  const int lag = tile.lag + warp_id(), cached = pattern.S - pattern.T;
  for (int d = lane_id(); d < problem.D; d += 32) sums[d] = 0;
  W slope = 0;
  for (int pair = tile.group; pair < tile.pairs; pair += problem.groups) {
    Work work;
    tile.pick(work, pair);
    if (!start_lags(problem, work, lag, 1)) continue;
    const uint32_t stream = head_stream(problem.dropout_seed, work);
    Work of_queries = work, of_keys = work;
    of_queries.shift = cached, of_keys.shift = 0, of_keys.end = pattern.S;
    for (int column = work.begin; column < work.end; ++column) {
      const auto query =
          item_of<true, true>(problem, work, pattern.template column<Role::keys>(of_queries, column), stream);
      const Key<T> key = item_of<false, true>(
          problem, work, pattern.template column<Role::queries>(of_keys, column + problem.first() - lag), stream);
      if (!query.sees(key)) continue;
      const W weight = wide_weights(problem, work, query, key, slope).ds * problem.scale;
      const T* row = problem.query.at(work, query.token);
      for (int d = lane_id(); d < problem.D; d += 32) sums[d] += weight * W(row[d]);
    }
  }
  if (lag >= problem.lags()) return;
  W* to = tile.sums(problem, lag);
  for (int d = lane_id(); d < problem.D; d += 32) to[d] = sums[d];
}

}  // namespace longspan::cuda
