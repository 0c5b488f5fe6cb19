// Attention over tiles, backward: gradients of queries by tiles of queries, of keys and values by tiles of keys.
//
//     ds_j = p_j (keep_j grad_out . v_j - delta),   delta = out . grad_out - grad_lse
#pragma once
#include "cuda/walk.cuh"

namespace longspan::cuda {

// p and ds of a tile: on entry products of rows and columns, `scores` of queries and keys, `gradients` of grad_out and
// values; on exit p keep and ds.
template <Role role, int N, class T, int D, class Row, class Column>
__device__ __forceinline__ void weigh(
    const Problem<T>& problem, const Work& work, const Storage<T, D, true, role>& storage, int tile, int first_row,
    const Column* columns, Wide<T> (&scores)[N / 8][4], Wide<T> (&gradients)[N / 8][4]) {
  using W = Wide<T>;
  const Row rows[2] = {storage.row_items[first_row + tile_row(0)], storage.row_items[first_row + tile_row(1)]};
  score_pairs<role, N>(problem, work, storage, tile, first_row, rows, columns, scores);
  over_pairs<role, N>(rows, columns, [&](int n, int e, const Query<T>& query, const Key<T>&) {
    scores[n][e] = probability(scores[n][e], query);
  });
  if (!problem.dropout_seed) {
    over_pairs<role, N>(rows, columns, [&](int n, int e, const Query<T>& query, const Key<T>&) {
      gradients[n][e] = scores[n][e] * (gradients[n][e] - query.delta);
    });
  } else {
    over_pairs<role, N>(rows, columns, [&](int n, int e, const Query<T>& query, const Key<T>& key) {
      const W keep = keep_of(problem, query, key.token);
      gradients[n][e] = scores[n][e] * (gradients[n][e] * keep - query.delta);
      scores[n][e] *= keep;
    });
  }
}

// Gradients of the queries of a tile; `sums` by factors in units of log 2.
template <class T, int D, class AnyQuery>
__device__ __forceinline__ void store_query_gradients(
    const Problem<T>& problem, const Work& work, const AnyQuery* queries, int first_row,
    const Wide<T> (&sums)[D / 8][4]) {
  using W = Wide<T>;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = first_row + tile_row(r);
    if (row >= work.rows) continue;
    const int token = queries[row].token;
    W* sums_row = problem.query_sums.at(work, token);
    T* row_gradient = problem.grad_query.at(work, token);
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      const int column = sum_column<T>(n, 0);
      const W a = sums[n][2 * r] / kLog2e<W>, b = sums[n][2 * r + 1] / kLog2e<W>;
      if (problem.query_sums.data)
        add_pair(sums_row, column, problem.D, a, b);
      else
        store_pair<T>(row_gradient, column, problem.D, problem.aligned, a, b);
    }
  }
}

// Gradients of the keys and values of a tile, whose keys lie in shared memory.
template <class T, int D>
__device__ __forceinline__ void store_key_gradients(
    const Problem<T>& problem, const Work& work, const Key<T>* items, const T* keys, int first_row,
    const Wide<T> (&key_sums)[D / 8][4], const Wide<T> (&value_sums)[D / 8][4]) {
  using W = Wide<T>;
  const Pattern& pattern = problem.pattern;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = first_row + tile_row(r);
    const Key<T> item = items[row];
    const W factor = item.factor / kLog2e<W>;
    // Where queries are the keys: k = x f, f = 1 / |x|, and the gradient of x is f (grad_k - k (k . grad_k)).
    const T* own = keys + row * kPitch<T, D>;
    W along = 0;
    if (pattern.shared) {
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) along += W(own[sum_column<T>(n, e)]) * key_sums[n][2 * r + e];
      along = quad_sum(along) * factor * factor * factor;
    }
    const bool hidden = item.token < 0;  // by the key mask: it has gradients, zeros
    if (row >= work.rows || (hidden && problem.query_sums.data)) continue;
    const int token = hidden ? pattern.row_token(work, row) : item.token;
    W *query_sums_row = problem.query_sums.at(work, token), *value_sums_row = problem.value_sums.at(work, token);
    T *key_gradient = problem.grad_key.at(work, token), *value_gradient = problem.grad_value.at(work, token);
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      const int column = sum_column<T>(n, 0);
      W a = hidden ? W(0) : key_sums[n][2 * r] * factor, b = hidden ? W(0) : key_sums[n][2 * r + 1] * factor;
      const W value_a = hidden ? W(0) : value_sums[n][2 * r], value_b = hidden ? W(0) : value_sums[n][2 * r + 1];
      if (pattern.shared) a -= W(own[column]) * along, b -= W(own[column + 1]) * along;
      if (problem.query_sums.data) {
        add_pair(query_sums_row, column, problem.D, a, b);
        add_pair(value_sums_row, column, problem.D, value_a, value_b);
      } else {
        store_pair<T>(key_gradient, column, problem.D, problem.aligned, a, b);
        store_pair<T>(value_gradient, column, problem.D, problem.aligned, value_a, value_b);
      }
    }
  }
}

template <class T, int D>
__global__ void __launch_bounds__(Shape<T, D, true>::threads, Shape<T, D, true>::blocks)
    attention_backward_queries(const LONGSPAN_GRID_CONSTANT Problem<T> problem) {
  using W = Wide<T>;
  constexpr int N = Shape<T, D, true>::columns, pitch = kPitch<T, D>;
  LONGSPAN_SHARED(shared);
  Carver carver(shared);
  const Storage<T, D, true, Role::queries> storage(carver, problem.pattern.chunks.deduplicate);
  Work work;
  if (!problem.pattern.template start<Role::queries>(work, blockIdx.x)) return;
  const int first_row = 16 * warp_id();
  W sums[D / 8][4];
  clear(sums);
  walk(
      problem, work, storage, problem.query, problem.grad_out, problem.key, problem.value,
      [&](int tile, const Key<T>* items, const T* keys, const T* values) {
        if (first_row >= work.rows) return;
        W scores[N / 8][4], gradients[N / 8][4];
        multiply_rows<T, D, N>(scores, storage.rows[0] + first_row * pitch, keys);
        multiply_rows<T, D, N>(gradients, storage.rows[1] + first_row * pitch, values);
        weigh<Role::queries, N, T, D, Query<T>>(problem, work, storage, tile, first_row, items, scores, gradients);
        if (problem.factor) {
#pragma unroll
          for (int n = 0; n < N / 8; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) gradients[n][e] *= items[score_column(n, e)].factor;
        } else {
          multiply(gradients, problem.scale * kLog2e<W>);
        }
        add_columns<T, D, N>(sums, gradients, keys);
      });
  store_query_gradients<T, D>(problem, problem.pattern.results_of(work), storage.row_items, first_row, sums);
}

template <class T, int D>
__global__ void __launch_bounds__(Shape<T, D, true>::threads, Shape<T, D, true>::blocks)
    attention_backward_keys(const LONGSPAN_GRID_CONSTANT Problem<T> problem) {
  using W = Wide<T>;
  constexpr int N = Shape<T, D, true>::columns, pitch = kPitch<T, D>;
  LONGSPAN_SHARED(shared);
  Carver carver(shared);
  const Storage<T, D, true, Role::keys> storage(carver, problem.pattern.chunks.deduplicate);
  Work work;
  if (!problem.pattern.template start<Role::keys>(work, blockIdx.x)) return;
  const int first_row = 16 * warp_id();
  W key_sums[D / 8][4], value_sums[D / 8][4];
  clear(key_sums), clear(value_sums);
  walk(
      problem, work, storage, problem.key, problem.value, problem.query, problem.grad_out,
      [&](int tile, const Query<T>* items, const T* queries, const T* grad_out) {
        if (first_row >= work.rows) return;
        W scores[N / 8][4], gradients[N / 8][4];
        multiply_rows<T, D, N>(scores, storage.rows[0] + first_row * pitch, queries);
        multiply_rows<T, D, N>(gradients, storage.rows[1] + first_row * pitch, grad_out);
        weigh<Role::keys, N, T, D, Key<T>>(problem, work, storage, tile, first_row, items, scores, gradients);
        add_columns<T, D, N>(value_sums, scores, grad_out);
        add_columns<T, D, N>(key_sums, gradients, queries);
      });
  store_key_gradients<T, D>(
      problem, problem.pattern.results_of(work), storage.row_items, storage.rows[0], first_row, key_sums, value_sums);
}

}  // namespace longspan::cuda
