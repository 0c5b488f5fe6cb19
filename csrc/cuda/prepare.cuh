// What attention needs to know of each token beforehand. A warp for each token.
#pragma once
#include "cuda/problem.cuh"

namespace longspan::cuda {

constexpr int kPrepareRows = 4;  // warps of a block

// The token of this warp, of B H T; false: there is none.
template <class T>
__device__ __forceinline__ bool own_token(const Problem<T>& problem, Work& work, int& token) {
  const Pattern& pattern = problem.pattern;
  const int64_t at = int64_t(blockIdx.x) * kPrepareRows + warp_id();
  if (at >= int64_t(pattern.B) * pattern.H * pattern.T) return false;
  work.batch = int(at / pattern.T / pattern.H), work.head = int(at / pattern.T % pattern.H);
  token = int(at % pattern.T);
  return true;
}

// factor = (|x|^2 + D 1e-6)^(-1/2)
template <class T>
__global__ void __launch_bounds__(32 * kPrepareRows)
    key_factors(const LONGSPAN_GRID_CONSTANT Problem<T> problem, Wide<T>* factor) {
  using W = Wide<T>;
  Work work;
  int token;
  if (!own_token(problem, work, token)) return;
  const T* x = problem.key.at(work, token);
  W sum = 0;
  for (int d = lane_id(); d < problem.D; d += 32) sum += W(x[d]) * W(x[d]);
  sum = warp_sum(sum);
  if (lane_id() == 0) factor[problem.pattern.at(work, token)] = W(1) / sqrt(sum + W(problem.D) * W(1e-6));
}

// delta = out . grad_out - grad_lse; and a token that took its own value passes its gradient to it.
template <class T>
__global__ void __launch_bounds__(32 * kPrepareRows) query_deltas(
    const LONGSPAN_GRID_CONSTANT Problem<T> problem, const LONGSPAN_GRID_CONSTANT Rows<const T> out,
    const Wide<T>* grad_lse, Wide<T>* delta) {
  using W = Wide<T>;
  Work work;
  int token;
  if (!own_token(problem, work, token)) return;
  const T *row = out.at(work, token), *gradient = problem.grad_out.at(work, token);
  const int64_t at = problem.pattern.at(work, token);
  W sum = 0;
  for (int d = lane_id(); d < problem.D; d += 32) sum += W(row[d]) * W(gradient[d]);
  sum = warp_sum(sum);
  if (lane_id() == 0) delta[at] = grad_lse ? sum - grad_lse[at] : sum;
  if (!problem.pattern.shared || problem.lse[at] > minus_infinity<W>()) return;
  for (int d = lane_id(); d < problem.D; d += 32) problem.value_sums.at(work, token)[d] += W(gradient[d]);
}

}  // namespace longspan::cuda
