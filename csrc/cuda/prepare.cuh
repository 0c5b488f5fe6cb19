// What attention needs to know of each token beforehand, and what becomes of its shares afterwards. A warp for each
// token.
#pragma once
#include "cuda/problem.cuh"

namespace longspan::cuda {

// The token of this warp, of `tokens` in each head of the pattern; false: there is none.
__device__ __forceinline__ bool own_token(const Pattern& pattern, int tokens, Work& work, int& token) {
  if (!own_row(pattern.B, pattern.heads, tokens, work, token)) return false;
  work.head += pattern.first_head;
  return true;
}

// factor = (|x|^2 + D 1e-6)^(-1/2)
template <class T>
__global__ void __launch_bounds__(32 * kRowsOfWarps)
    key_factors(const LONGSPAN_GRID_CONSTANT Problem<T> problem, Wide<T>* factor) {
  using W = Wide<T>;
  Work work;
  int token;
  if (!own_token(problem.pattern, problem.pattern.T, work, token)) return;
  const T* x = problem.key.at(work, token);
  W sum = 0;
  for (int d = lane_id(); d < problem.D; d += 32) sum += W(x[d]) * W(x[d]);
  sum = warp_sum(sum);
  if (lane_id() == 0) factor[problem.pattern.at(work, token)] = W(1) / sqrt(sum + W(problem.D) * W(1e-6));
}

// delta = out . grad_out - grad_lse; and a token that took its own value passes its gradient to it.
template <class T>
__global__ void __launch_bounds__(32 * kRowsOfWarps) query_deltas(
    const LONGSPAN_GRID_CONSTANT Problem<T> problem, const LONGSPAN_GRID_CONSTANT Rows<const T> out,
    const Wide<T>* grad_lse, Wide<T>* delta) {
  using W = Wide<T>;
  Work work;
  int token;
  if (!own_token(problem.pattern, problem.pattern.T, work, token)) return;
  const T *row = out.at(work, token), *gradient = problem.grad_out.at(work, token);
  const int64_t at = problem.pattern.at(work, token);
  W sum = 0;
  for (int d = lane_id(); d < problem.D; d += 32) sum += W(row[d]) * W(gradient[d]);
  sum = warp_sum(sum);
  if (lane_id() == 0) delta[at] = grad_lse ? sum - grad_lse[at] : sum;
  if (!problem.pattern.shared || problem.lse[at] > minus_infinity<W>()) return;
  for (int d = lane_id(); d < problem.D; d += 32) problem.value_sums.at(work, token)[d] += W(gradient[d]);
}

// out and lse from what each share of the keys gave: sums [shares B, H, T, D], lses [shares B, H, T]. See ops/merge.py.
template <class T>
__global__ void __launch_bounds__(32 * kRowsOfWarps) merge_shares(
    const LONGSPAN_GRID_CONSTANT Problem<T> problem, const LONGSPAN_GRID_CONSTANT Rows<const Wide<T>> sums,
    const Wide<T>* lses, int shares) {
  using W = Wide<T>;
  const Pattern& pattern = problem.pattern;
  Work work;
  int token;
  if (!own_token(pattern, pattern.T, work, token)) return;
  const int64_t at = pattern.at(work, token), apart = int64_t(pattern.B) * pattern.H * pattern.T;
  W highest = minus_infinity<W>(), total = 0;
  for (int share = 0; share < shares; ++share) {
    const W lse = lses[at + share * apart];
    highest = lse > highest ? lse : highest;
  }
  const W shift = highest == minus_infinity<W>() ? W(0) : highest;
  constexpr int pieces = kWidestTile / 32;
  W row[pieces] = {};
  for (int share = 0; share < shares; ++share) {
    const W weight = exp2_fast((lses[at + share * apart] - shift) * kLog2e<W>);
    const W* from = sums.at(work, token) + share * pattern.B * sums.batch;
    total += weight;
#pragma unroll
    for (int i = 0; i < pieces; ++i)
      if (lane_id() + 32 * i < problem.D) row[i] += weight * from[lane_id() + 32 * i];
  }
  if (lane_id() == 0) problem.lse[at] = total == 0 ? highest : highest + log2_fast(total) / kLog2e<W>;
  const W inverse = total == 0 ? W(0) : W(1) / total;
  T* out = problem.out.at(work, token);
#pragma unroll
  for (int i = 0; i < pieces; ++i)
    if (lane_id() + 32 * i < problem.D) out[lane_id() + 32 * i] = T(row[i] * inverse);
}

// Gradients of `tokens` queries or keys of each head from those of all shares: sums [shares B, H, tokens, D].
template <class T>
__global__ void __launch_bounds__(32 * kRowsOfWarps) sum_shares(
    const LONGSPAN_GRID_CONSTANT Problem<T> problem, int tokens, const LONGSPAN_GRID_CONSTANT Rows<const Wide<T>> sums,
    int shares, const LONGSPAN_GRID_CONSTANT Rows<T> to) {
  Work work;
  int token;
  if (!own_token(problem.pattern, tokens, work, token)) return;
  for (int d = lane_id(); d < problem.D; d += 32) {
    Wide<T> sum = 0;
    for (int share = 0; share < shares; ++share)
      sum += sums.at(work, token)[share * problem.pattern.B * sums.batch + d];
    to.at(work, token)[d] = T(sum);
  }
}

}  // namespace longspan::cuda
