// Attention with soft spans, forward:
//
//     out = sum_j p_j keep_j v_j,   p_j = m(x_j) exp(s_j - lse),   s_j = scale q . (k_j + position[x_j])
#pragma once
#include "cuda/forward.cuh"
#include "cuda/span.cuh"

namespace longspan::cuda {

// Products of queries and keys become scores in units of log 2, the logarithm of the mask added.
template <int N, class T>
__device__ __forceinline__ void score_spans(
    const SpanProblem<T>& problem, const Work& work, int begin, const SpanQuery<T> (&queries)[2], const Key<T>* keys,
    Wide<T> (&scores)[N / 8][4]) {
  const bool whole = before_ramp<Role::queries>(problem, work, begin, begin + N);
  over_pairs<Role::queries, N>(queries, keys, [&](int n, int e, const SpanQuery<T>& query, const Key<T>& key) {
    scores[n][e] *= key.factor;
    if (whole) return;
    const Wide<T> m = soft_mask(problem, query, distance_of(problem, query, key.place));
    scores[n][e] = query.sees(key) && m > 0 ? scores[n][e] + log2_fast(m) : minus_infinity<Wide<T>>();
  });
}

template <class T, int D>
__global__ void __launch_bounds__(SpanStorage<T, D, false, Role::queries>::Sizes::threads, 2)
    span_forward(const LONGSPAN_GRID_CONSTANT SpanProblem<T> problem) {
  using Storage = SpanStorage<T, D, false, Role::queries>;
  constexpr int N = Storage::Sizes::columns;
  LONGSPAN_SHARED(shared);
  Carver carver(shared);
  const Storage storage(carver);
  Work work;
  if (!problem.pattern.template start<Role::queries>(work, blockIdx.x)) return;
  const int first_row = 16 * warp_id();
  Softmax<T, D> softmax;
  walk_spans(
      problem, work, storage, problem.query, problem.query, problem.key, problem.value,
      [&](int tile, const Key<T>* items, const T* keys, const T* values) {
        if (first_row >= work.rows) return;
        const SpanQuery<T> queries[2] = {
            storage.row_items[first_row + tile_row(0)], storage.row_items[first_row + tile_row(1)]};
        Wide<T> scores[N / 8][4];
        multiply_rows<T, D, N>(scores, storage.rows[0] + first_row * kPitch<T, D>, keys);
        if (problem.position_rows) add_positions(storage, tile, first_row, keys, scores);
        score_spans<N>(problem, work, work.begin + tile * N, queries, items, scores);
        softmax.take(scores);
        drop<N>(problem, queries, items, scores);
        add_columns<T, D, N>(softmax.sums, scores, values);
      });
  softmax.finish(problem, problem.pattern.results_of(work), storage.row_items, first_row);
}

}  // namespace longspan::cuda
