// Attention over tiles, forward, for every pattern (pattern.cuh) and both engines (tile.cuh):
//
//     out = sum_j p_j keep_j v_j,   p_j = exp(s_j - lse),   s_j = scale q . k_j
#pragma once
#include "cuda/walk.cuh"

namespace longspan::cuda {

// Softmax that takes its scores tile by tile, and sums values with what it makes of them: 16 rows of one warp.
template <class T, int D>
struct Softmax {
  using W = Wide<T>;
  W sums[D / 8][4], maximum[2], total[2];

  __device__ __forceinline__ Softmax() {
    clear(sums);
#pragma unroll
    for (int r = 0; r < 2; ++r) maximum[r] = minus_infinity<W>(), total[r] = 0;
  }

  // Goes on from what earlier rounds left.
  __device__ __forceinline__ void resume(const Problem<T>& problem, const Work& work, int first_row) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first_row + tile_row(r);
      if (row >= work.rows) continue;
      const int token = problem.pattern.template row<Role::queries>(work, row).token;
      const W lse = problem.lse[problem.pattern.at(work, token)];
      if (lse == minus_infinity<W>()) continue;
      maximum[r] = lse * kLog2e<W>, total[r] = lane_id() % 4 == 0;  // the four lanes of a row are summed in the end
      const W* from = problem.running.at(work, token);
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          if (sum_column<T>(n, e) < problem.D) sums[n][2 * r + e] = from[sum_column<T>(n, e)];
    }
  }

  // Scores, in units of log 2, become weights; what was summed shrinks where the maximum rises.
  template <int tiles>
  __device__ __forceinline__ void take(W (&scores)[tiles][4]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      W highest = maximum[r];
#pragma unroll
      for (int n = 0; n < tiles; ++n)
#pragma unroll
        for (int e = 2 * r; e < 2 * r + 2; ++e) highest = larger(highest, scores[n][e]);
      highest = quad_max(highest);
      const W shift = highest == minus_infinity<W>() ? W(0) : highest, shrink = exp2_fast(maximum[r] - shift);
      maximum[r] = highest, total[r] *= shrink;
#pragma unroll
      for (int n = 0; n < tiles; ++n)
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
  }

  // Writes out and lse, or what the next round goes on from.
  template <class AnyQuery>
  __device__ __forceinline__ void finish(
      const Problem<T>& problem, const Work& work, const AnyQuery* queries, int first_row) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      total[r] = quad_sum(total[r]);
      const int row = first_row + tile_row(r);
      if (row >= work.rows) continue;
      const int token = queries[row].token;
      const bool alone = total[r] == 0;
      const W inverse = alone ? W(0) : W(1) / total[r];
      const T* own = problem.value.at(work, token);
      T* out = problem.out.at(work, token);
      W* running = problem.running.at(work, token);
      if (lane_id() % 4 == 0)
        problem.lse[problem.pattern.at(work, token)] =
            alone ? minus_infinity<W>() : (maximum[r] + log2_fast(total[r])) / kLog2e<W>;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        const int column = sum_column<T>(n, 0);
        W a = sums[n][2 * r] * inverse, b = sums[n][2 * r + 1] * inverse;
        if (!problem.last) {
          store_pair<W>(running, column, problem.D, false, a, b);
          continue;
        }
        if (alone && problem.pattern.shared) {
          a = column < problem.D ? W(own[column]) : W(0), b = column + 1 < problem.D ? W(own[column + 1]) : W(0);
        }
        store_pair<T>(out, column, problem.D, problem.aligned, a, b);
      }
    }
  }
};

// Dropout of a tile of weights.
template <int N, class T, class AnyQuery>
__device__ __forceinline__ void drop(
    const Problem<T>& problem, const AnyQuery (&queries)[2], const Key<T>* keys, Wide<T> (&weights)[N / 8][4]) {
  if (!problem.dropout_seed) return;
  over_pairs<Role::queries, N>(queries, keys, [&](int n, int e, const AnyQuery& query, const Key<T>& key) {
    weights[n][e] *= keep_of(problem, query, key.token);
  });
}

template <class T, int D>
__global__ void __launch_bounds__(Shape<T, D, false>::threads, Shape<T, D, false>::blocks)
    attention_forward(const LONGSPAN_GRID_CONSTANT Problem<T> problem) {
  constexpr int N = Shape<T, D, false>::columns;
  LONGSPAN_SHARED(shared);
  Carver carver(shared);
  const Storage<T, D, false, Role::queries> storage(carver, problem.pattern.chunks.deduplicate);
  Work work;
  if (!problem.pattern.template start<Role::queries>(work, blockIdx.x)) return;  // the whole block leaves
  const int first_row = 16 * warp_id();
  Softmax<T, D> softmax;
  if (problem.resume) softmax.resume(problem, work, first_row);
  walk(
      problem, work, storage, problem.query, problem.query, problem.key, problem.value,
      [&](int tile, const Key<T>* items, const T* keys, const T* values) {
        if (first_row >= work.rows) return;  // a warp without rows
        const Query<T> queries[2] = {
            storage.row_items[first_row + tile_row(0)], storage.row_items[first_row + tile_row(1)]};
        Wide<T> scores[N / 8][4];
        multiply_rows<T, D, N>(scores, storage.rows[0] + first_row * kPitch<T, D>, keys);
        score_pairs<Role::queries, N>(problem, work, storage, tile, first_row, queries, items, scores);
        softmax.take(scores);
        drop<N>(problem, queries, items, scores);
        add_columns<T, D, N>(softmax.sums, scores, values);
      });
  softmax.finish(problem, problem.pattern.results_of(work), storage.row_items, first_row);
}

}  // namespace longspan::cuda
