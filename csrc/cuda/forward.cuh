// Attention over tiles, forward, for every pattern (pattern.cuh) and both engines (tile.cuh):
//
//     out = sum_j p_j keep_j v_j,   p_j = exp(s_j - lse),   s_j = scale q . k_j
#pragma once
#include "cuda/walk.cuh"

namespace longspan::cuda {

template <class T, int D>
__global__ void __launch_bounds__(Shape<T, D, false>::threads, 2)
    attention_forward(const LONGSPAN_GRID_CONSTANT Problem<T> problem) {
  using W = Wide<T>;
  using Sizes = Shape<T, D, false>;
  constexpr int N = Sizes::columns;
  LONGSPAN_SHARED(shared);
  Carver carver(shared);
  const Storage<T, D, false, Role::queries> storage(carver);
  const Pattern& pattern = problem.pattern;
  Work work;
  if (!pattern.start<Role::queries>(work, blockIdx.x)) return;  // the whole block leaves

  const int first_row = 16 * warp_id();
  W sums[D / 8][4], maximum[2], total[2];
#pragma unroll
  for (int n = 0; n < D / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) sums[n][e] = 0;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    maximum[r] = minus_infinity<W>(), total[r] = 0;
    const int row = first_row + tile_row(r);
    if (!problem.resume || row >= work.rows) continue;
    const int token = pattern.row<Role::queries>(work, row).token;
    const W lse = problem.lse[pattern.at(work, token)];
    if (lse == minus_infinity<W>()) continue;
    maximum[r] = lse * kLog2e<W>, total[r] = lane_id() % 4 == 0;  // the four lanes of a row are summed in the end
    const W* from = problem.running.at(work, token);
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        if (sum_column<T>(n, e) < problem.D) sums[n][2 * r + e] = from[sum_column<T>(n, e)];
  }

  walk<Role::queries, false>(
      problem, work, storage, problem.query, problem.query, problem.key, problem.value,
      [&](int tile, const Key<T>* items, const T* keys, const T* values) {
        const Query<T> queries[2] = {
            storage.row_items[first_row + tile_row(0)], storage.row_items[first_row + tile_row(1)]};
        W scores[N / 8][4];
        multiply_rows<T, D, N>(scores, storage.rows[0] + first_row * kPitch<T, D>, keys);
        score_pairs<Role::queries, N>(problem, work, storage, tile, first_row, queries, items, scores);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          W highest = maximum[r];
#pragma unroll
          for (int n = 0; n < N / 8; ++n)
#pragma unroll
            for (int e = 2 * r; e < 2 * r + 2; ++e) highest = scores[n][e] > highest ? scores[n][e] : highest;
          highest = quad_max(highest);
          const W shift = highest == minus_infinity<W>() ? W(0) : highest, shrink = exp2_fast(maximum[r] - shift);
          maximum[r] = highest, total[r] *= shrink;
#pragma unroll
          for (int n = 0; n < N / 8; ++n)
#pragma unroll
            for (int e = 2 * r; e < 2 * r + 2; ++e) {
              scores[n][e] = exp2_fast(scores[n][e] - shift);
              total[r] += scores[n][e];
            }
#pragma unroll
          for (int n = 0; n < D / 8; ++n)
#pragma unroll
            for (int e = 2 * r; e < 2 * r + 2; ++e) sums[n][e] *= shrink;
        }
        if (problem.dropout_seed)
          over_pairs<Role::queries, N>(queries, items, [&](int n, int e, const Query<T>& query, const Key<T>& key) {
            scores[n][e] *= keep_of(problem, query, key.token);
          });
        add_columns<T, D, N>(sums, scores, values);
      });

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    total[r] = quad_sum(total[r]);
    const int row = first_row + tile_row(r);
    if (row >= work.rows) continue;
    const int token = storage.row_items[row].token;
    const bool alone = total[r] == 0;
    const W inverse = alone ? W(0) : W(1) / total[r];
    const T* own = problem.value.at(work, token);
    T* out = problem.out.at(work, token);
    W* running = problem.running.at(work, token);
    if (lane_id() % 4 == 0)
      problem.lse[pattern.at(work, token)] =
          alone ? minus_infinity<W>() : (maximum[r] + log2_fast(total[r])) / kLog2e<W>;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      const int column = sum_column<T>(n, 0);
      W a = sums[n][2 * r] * inverse, b = sums[n][2 * r + 1] * inverse;
      if (!problem.last) {
        store_pair<W>(running, column, problem.D, false, a, b);
        continue;
      }
      if (alone && pattern.shared) {
        a = column < problem.D ? W(own[column]) : W(0), b = column + 1 < problem.D ? W(own[column + 1]) : W(0);
      }
      store_pair<T>(out, column, problem.D, problem.aligned, a, b);
    }
  }
}

}  // namespace longspan::cuda
