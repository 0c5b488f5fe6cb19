// Before and after attention with soft spans: how far heads reach, and gradients of lags as those of positions.
#pragma once
#include "cuda/span.cuh"

namespace longspan::cuda {

// far [B, H]: keys that some query of a head looks at, as span_reach in ops/span.py; a warp for each head.
template <class T>
__global__ void __launch_bounds__(32) span_reaches(const LONGSPAN_GRID_CONSTANT SpanProblem<T> problem, int* far) {
  const int head = int(blockIdx.x) % problem.pattern.H, batch = int(blockIdx.x) / problem.pattern.H;
  const Wide<T>* spans = problem.span + batch * problem.span_batch + head * problem.span_head;
  int most = 0;
  for (int token = lane_id(); token < (problem.span_token ? problem.pattern.T : 1); token += 32) {
    const double reach = floor(double(spans[token * problem.span_token]) + double(problem.ramp)) + 1;
    if (reach > most) most = reach < problem.max_span ? int(reach) : problem.max_span;  // false for NaN
  }
#pragma unroll
  for (int lane = 16; lane; lane /= 2) most = max(most, __shfl_xor_sync(kWholeWarp, most, lane));
  if (lane_id() == 0) far[blockIdx.x] = most;
}

// grad_position [H or 1, position_rows, D] from position_sums: a thread for each number.
template <class T>
__global__ void __launch_bounds__(128)
    fold_lags(const LONGSPAN_GRID_CONSTANT SpanProblem<T> problem, T* grad_position) {
  const int tables = problem.tables();
  const int64_t i = int64_t(blockIdx.x) * 128 + threadIdx.x;
  if (i >= int64_t(tables) * problem.position_rows * problem.D) return;
  const int feature = int(i % problem.D), row = int(i / problem.D % problem.position_rows);
  const int table = int(i / problem.D / problem.position_rows);
  int lag = row, other = row;
  if (problem.both_ways()) {
    const bool of_offsets = problem.position_rows == problem.lags();
    lag = of_offsets ? problem.lags() - 1 - row : problem.first() - row;
    other = of_offsets ? lag : problem.first() + row;
  }
  Wide<T> sum = 0;
  for (int group = 0; group < problem.groups; ++group) {
    const Wide<T>* from =
        problem.position_sums + int64_t(group * tables + table) * problem.lags() * problem.D + feature;
    sum += from[int64_t(lag) * problem.D];
    if (other != lag) sum += from[int64_t(other) * problem.D];
  }
  grad_position[i] = T(sum);
}

}  // namespace longspan::cuda
