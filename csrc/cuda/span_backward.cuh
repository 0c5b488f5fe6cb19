// Attention with soft spans, backward: gradients of queries and spans by tiles of queries, of keys and values by tiles
// of keys (and of positions by tiles of lags, span_positions.cuh).
//
//     ds_j = p_j (keep_j grad_out . v_j - delta),   dspan = sum over the ramp of e_j (keep_j grad_out . v_j - delta) /
//     ramp
//
// with e_j = exp(s_j - lse), p_j = m(x_j) e_j.
#pragma once
#include "cuda/backward.cuh"
#include "cuda/span.cuh"

namespace longspan::cuda {

// A key with weight 0 at the end of the ramp may score anything: its slope stays finite.
template <class W>
constexpr W kLargestExponent = W(80) * kLog2e<W>;

// On entry the products of a pair, on exit p keep and ds; adds to `slope` where the mask has one.
template <class T>
__device__ __forceinline__ void weigh_pair(
    const SpanProblem<T>& problem, bool whole, const SpanQuery<T>& query, const Key<T>& key, Wide<T>& score,
    Wide<T>& gradient, Wide<T>& slope) {
  using W = Wide<T>;
  if (!whole && !query.sees(key)) {
    score = gradient = 0;
    return;
  }
  const W exponent = score * key.factor - query.lse;
  const W weight = exp2_fast(exponent > kLargestExponent<W> ? kLargestExponent<W> : exponent);
  const W keep = problem.dropout_seed ? keep_of(problem, query, key.token) : W(1);
  const W change = gradient * keep - query.delta;
  W m = 1;
  if (!whole) {
    const int distance = distance_of(problem, query, key.place);
    m = soft_mask(problem, query, distance);
    if (on_ramp(problem, query, distance)) slope += weight * change;
  }
  const W p = m * weight < 1 ? m * weight : W(1);  // at most 1 where lse was rounded, too
  score = p * keep;
  gradient = p * change;
}

template <class T, int D>
__global__ void __launch_bounds__(SpanStorage<T, D, true, Role::queries>::Sizes::threads, 2)
    span_backward_queries(const LONGSPAN_GRID_CONSTANT SpanProblem<T> problem) {
  using W = Wide<T>;
  using Storage = SpanStorage<T, D, true, Role::queries>;
  constexpr int N = Storage::Sizes::columns, width = N + 16, pitch = kPitch<T, D>;
  LONGSPAN_SHARED(shared);
  Carver carver(shared);
  const Storage storage(carver);
  Work work;
  if (!problem.pattern.template start<Role::queries>(work, blockIdx.x)) return;
  const int first_row = 16 * warp_id();
  W sums[D / 8][4], slopes[2] = {};
  clear(sums);
  walk_spans(
      problem, work, storage, problem.query, problem.grad_out, problem.key, problem.value,
      [&](int tile, const Key<T>* items, const T* keys, const T* values) {
        if (first_row >= work.rows) return;
        const SpanQuery<T> queries[2] = {
            storage.row_items[first_row + tile_row(0)], storage.row_items[first_row + tile_row(1)]};
        W scores[N / 8][4], gradients[N / 8][4];
        multiply_rows<T, D, N>(scores, storage.rows[0] + first_row * pitch, keys);
        if (problem.position_rows) add_positions(storage, tile, first_row, keys, scores);
        multiply_rows<T, D, N>(gradients, storage.rows[1] + first_row * pitch, values);
        const int begin = work.begin + tile * N;
        const bool whole = before_ramp<Role::queries>(problem, work, begin, begin + N);
        over_pairs<Role::queries, N>(queries, items, [&](int n, int e, const SpanQuery<T>& query, const Key<T>& key) {
          weigh_pair(problem, whole, query, key, scores[n][e], gradients[n][e], slopes[e / 2]);
          gradients[n][e] *= key.factor;
        });
        add_columns<T, D, N>(sums, gradients, keys);
        if (!problem.position_rows) return;
        const auto sheared = storage.shear();
        W by_diagonal[width / 8][4];
        __syncwarp();
#pragma unroll
        for (int n = 0; n < N / 8; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) sheared.at(tile_row(e / 2), score_column(n, e)) = gradients[n][e];
        __syncwarp();
#pragma unroll
        for (int n = 0; n < width / 8; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int column = score_column(n, e) + tile_row(e / 2) - 15;
            by_diagonal[n][e] = column >= 0 && column < N ? sheared.at(tile_row(e / 2), column) : W(0);
          }
        add_columns<T, D, width>(sums, by_diagonal, own_diagonals(storage, tile, first_row));
      });
  store_query_gradients<T, D>(problem, work, storage.row_items, first_row, sums);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = first_row + tile_row(r);
    slopes[r] = quad_sum(slopes[r]) * problem.inverse_ramp;
    if (row < work.rows && lane_id() % 4 == 0)
      problem.grad_span[problem.pattern.at(work, storage.row_items[row].token)] = slopes[r];
  }
}

template <class T, int D>
__global__ void __launch_bounds__(SpanStorage<T, D, true, Role::keys>::Sizes::threads, 2)
    span_backward_keys(const LONGSPAN_GRID_CONSTANT SpanProblem<T> problem) {
  using W = Wide<T>;
  using Storage = SpanStorage<T, D, true, Role::keys>;
  constexpr int N = Storage::Sizes::columns, pitch = kPitch<T, D>;
  LONGSPAN_SHARED(shared);
  Carver carver(shared);
  const Storage storage(carver);
  Work work;
  if (!problem.pattern.template start<Role::keys>(work, blockIdx.x)) return;
  const int first_row = 16 * warp_id();
  W key_sums[D / 8][4], value_sums[D / 8][4];
  clear(key_sums), clear(value_sums);
  walk_spans(
      problem, work, storage, problem.key, problem.value, problem.query, problem.grad_out,
      [&](int tile, const SpanQuery<T>* items, const T* queries, const T* grad_out) {
        if (first_row >= work.rows) return;
        const Key<T> keys[2] = {storage.row_items[first_row + tile_row(0)], storage.row_items[first_row + tile_row(1)]};
        W scores[N / 8][4], gradients[N / 8][4], slope = 0;
        multiply_rows<T, D, N>(scores, storage.rows[0] + first_row * pitch, queries);
        if (problem.position_rows) add_positions(storage, tile, first_row, queries, scores);
        multiply_rows<T, D, N>(gradients, storage.rows[1] + first_row * pitch, grad_out);
        const int begin = work.begin + tile * N;
        const bool whole = before_ramp<Role::keys>(problem, work, begin, begin + N);
        over_pairs<Role::keys, N>(keys, items, [&](int n, int e, const SpanQuery<T>& query, const Key<T>& key) {
          weigh_pair(problem, whole, query, key, scores[n][e], gradients[n][e], slope);
        });
        add_columns<T, D, N>(value_sums, scores, grad_out);
        add_columns<T, D, N>(key_sums, gradients, queries);
      });
  store_key_gradients<T, D>(problem, work, storage.row_items, storage.rows[0], first_row, key_sums, value_sums);
}

}  // namespace longspan::cuda
