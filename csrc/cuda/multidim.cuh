// Multi-dimensional attention on a GPU, as ops/multidim.py defines it: features in lanes, some tokens in each thread.
//
// With x = exp(2 (key + query) / c) and r = 1 / (1 + x): tanh = 1 - 2 r, and its derivative is 4 r (1 - r). Whatever x
// becomes, zero or infinity, r is right.
#pragma once
#include "cuda/words.cuh"

namespace longspan::cuda {

constexpr int kFeatures = 32;                               // of a block: one for each lane
constexpr int kMultidimWarps = 4;                           // of a block
constexpr int kOwnTokens = 4;                               // of a thread
constexpr int kMultidimRows = kMultidimWarps * kOwnTokens;  // tokens of a block
constexpr int kOthers = 16;                                 // tokens of a tile that they meet

// Contiguous tensors [B, L, D].
template <class T>
struct MultidimProblem {
  int B, L, D;
  bool earlier, later, own;  // what a query sees
  Wide<T> scale;
  const T *dependent, *head, *value;
  const Wide<T>* bias;   // [D]
  const bool* key_mask;  // [B, L] or null
  T* out;
  Wide<T>* denominator;
  // Backward.
  const T *grad_out, *forward_out;
  const Wide<T>* grad_denominator;  // or null
  T *grad_dependent, *grad_value, *grad_head;
  Wide<T>* head_sums;  // [B, L, D], the gradient of heads before it is rounded: that of the bias is its sum
};

// The tokens and features of a block.
struct MultidimWork {
  int batch, first, feature;
  bool inside;  // whether this lane has a feature
  __device__ __forceinline__ int token(int i) const { return first + i * kMultidimWarps + int(threadIdx.x) / 32; }
};

template <class T>
__device__ __forceinline__ MultidimWork multidim_work(const MultidimProblem<T>& p) {
  const int pieces = (p.D + kFeatures - 1) / kFeatures, tiles = (p.L + kMultidimRows - 1) / kMultidimRows;
  const int block = int(blockIdx.x);
  MultidimWork work;
  work.feature = block % pieces * kFeatures + int(threadIdx.x) % 32;
  work.first = block / pieces % tiles * kMultidimRows;
  work.batch = block / pieces / tiles;
  work.inside = work.feature < p.D;
  return work;
}

// What a token brings to its pairs, in the dtype of the sums. As keys: key, value. As queries: query (with the bias),
// and in the backward pass share = grad_out / denominator and delta = share out - grad_denominator.
template <class T>
struct alignas(16) MultidimToken {
  Wide<T> a, b, c;
  bool seen;  // it exists and is no padding
};

template <class T>
__device__ __forceinline__ MultidimToken<T> multidim_key(
    const MultidimProblem<T>& p, const MultidimWork& work, int token) {
  using W = Wide<T>;
  if (token >= p.L || (p.key_mask && !p.key_mask[int64_t(work.batch) * p.L + token])) return {0, 0, 0, false};
  const int64_t at = (int64_t(work.batch) * p.L + token) * p.D + work.feature;
  return work.inside ? MultidimToken<T>{W(p.dependent[at]), W(p.value[at]), 0, true} : MultidimToken<T>{0, 0, 0, true};
}

template <bool backward, class T>
__device__ __forceinline__ MultidimToken<T> multidim_query(
    const MultidimProblem<T>& p, const MultidimWork& work, int token) {
  using W = Wide<T>;
  if (token >= p.L || (p.key_mask && !p.key_mask[int64_t(work.batch) * p.L + token])) return {0, 0, 0, false};
  if (!work.inside) return {0, 0, 0, true};
  const int64_t at = (int64_t(work.batch) * p.L + token) * p.D + work.feature;
  MultidimToken<T> query{W(p.head[at]) + p.bias[work.feature], 0, 0, true};
  if (backward && p.denominator[at] != 0) {
    query.b = W(p.grad_out[at]) / p.denominator[at];
    query.c = query.b * W(p.forward_out[at]) - (p.grad_denominator ? p.grad_denominator[at] : W(0));
  }
  return query;
}

template <class T>
struct MultidimPair {
  Wide<T> weight, slope;
};

template <class T>
__device__ __forceinline__ MultidimPair<T> multidim_pair(const MultidimProblem<T>& p, Wide<T> key, Wide<T> query) {
  using W = Wide<T>;
  constexpr W log2e = W(1.4426950408889634);
  const W r = reciprocal_fast(W(1) + exp2_fast(2 * log2e / p.scale * (key + query)));
  return {exp2_fast(log2e * p.scale * (W(1) - 2 * r)), 4 * r * (W(1) - r)};
}

// Calls body(i, the other token, its place) for each of this thread's tokens and all others of the sequence, tile by
// tile through shared memory; load(token) reads one.
template <class T, class Load, class Body>
__device__ __forceinline__ void over_others(
    const MultidimProblem<T>& p, MultidimToken<T>* others, Load&& load, Body&& body) {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  for (int begin = 0; begin < p.L; begin += kOthers) {
    __syncthreads();
    for (int i = warp; i < kOthers; i += kMultidimWarps) others[i * kFeatures + lane] = load(begin + i);
    __syncthreads();
    const int count = min(kOthers, p.L - begin);
    for (int j = 0; j < count; ++j) {
      const MultidimToken<T> other = others[j * kFeatures + lane];
      if (!other.seen) continue;
#pragma unroll
      for (int i = 0; i < kOwnTokens; ++i) body(i, other, begin + j);
    }
  }
}

template <class T>
__device__ __forceinline__ bool multidim_sees(const MultidimProblem<T>& p, int query, int key) {
  return key < query ? p.earlier : key > query ? p.later : p.own;
}

template <class T>
__global__ void __launch_bounds__(32 * kMultidimWarps, sizeof(T) == 8 ? 4 : 6)
    multidim_forward(const LONGSPAN_GRID_CONSTANT MultidimProblem<T> p) {
  using W = Wide<T>;
  LONGSPAN_SHARED(shared);
  Carver carver(shared);
  MultidimToken<T>* others = carver.take<MultidimToken<T>>(kOthers * kFeatures);
  const MultidimWork work = multidim_work(p);
  MultidimToken<T> own[kOwnTokens];
  W numerator[kOwnTokens] = {}, denominator[kOwnTokens] = {};
#pragma unroll
  for (int i = 0; i < kOwnTokens; ++i) own[i] = multidim_query<false>(p, work, work.token(i));
  over_others(
      p, others, [&](int token) { return multidim_key(p, work, token); },
      [&](int i, const MultidimToken<T>& key, int place) {
        if (!own[i].seen || !multidim_sees(p, work.token(i), place)) return;
        const W weight = multidim_pair(p, key.a, own[i].a).weight;
        numerator[i] += weight * key.b;
        denominator[i] += weight;
      });
#pragma unroll
  for (int i = 0; i < kOwnTokens; ++i) {
    if (!work.inside || work.token(i) >= p.L) continue;
    const int64_t at = (int64_t(work.batch) * p.L + work.token(i)) * p.D + work.feature;
    p.out[at] = T(denominator[i] == 0 ? W(0) : numerator[i] / denominator[i]);
    p.denominator[at] = denominator[i];
  }
}

template <class T>
__global__ void __launch_bounds__(32 * kMultidimWarps, sizeof(T) == 8 ? 4 : 6)
    multidim_backward_queries(const LONGSPAN_GRID_CONSTANT MultidimProblem<T> p) {
  using W = Wide<T>;
  LONGSPAN_SHARED(shared);
  Carver carver(shared);
  MultidimToken<T>* others = carver.take<MultidimToken<T>>(kOthers * kFeatures);
  const MultidimWork work = multidim_work(p);
  MultidimToken<T> own[kOwnTokens];
  W sums[kOwnTokens] = {};
#pragma unroll
  for (int i = 0; i < kOwnTokens; ++i) own[i] = multidim_query<true>(p, work, work.token(i));
  over_others(
      p, others, [&](int token) { return multidim_key(p, work, token); },
      [&](int i, const MultidimToken<T>& key, int place) {
        if (!own[i].seen || !multidim_sees(p, work.token(i), place)) return;
        const MultidimPair<T> pair = multidim_pair(p, key.a, own[i].a);
        sums[i] += pair.weight * (own[i].b * key.b - own[i].c) * pair.slope;
      });
#pragma unroll
  for (int i = 0; i < kOwnTokens; ++i) {
    if (!work.inside || work.token(i) >= p.L) continue;
    const int64_t at = (int64_t(work.batch) * p.L + work.token(i)) * p.D + work.feature;
    p.head_sums[at] = sums[i];
    p.grad_head[at] = T(sums[i]);
  }
}

template <class T>
__global__ void __launch_bounds__(32 * kMultidimWarps, sizeof(T) == 8 ? 4 : 6)
    multidim_backward_keys(const LONGSPAN_GRID_CONSTANT MultidimProblem<T> p) {
  using W = Wide<T>;
  LONGSPAN_SHARED(shared);
  Carver carver(shared);
  MultidimToken<T>* others = carver.take<MultidimToken<T>>(kOthers * kFeatures);
  const MultidimWork work = multidim_work(p);
  MultidimToken<T> own[kOwnTokens];
  W key_sums[kOwnTokens] = {}, value_sums[kOwnTokens] = {};
#pragma unroll
  for (int i = 0; i < kOwnTokens; ++i) own[i] = multidim_key(p, work, work.token(i));
  over_others(
      p, others, [&](int token) { return multidim_query<true>(p, work, token); },
      [&](int i, const MultidimToken<T>& query, int place) {
        if (!own[i].seen || !multidim_sees(p, place, work.token(i))) return;
        const MultidimPair<T> pair = multidim_pair(p, own[i].a, query.a);
        value_sums[i] += pair.weight * query.b;
        key_sums[i] += pair.weight * (query.b * own[i].b - query.c) * pair.slope;
      });
#pragma unroll
  for (int i = 0; i < kOwnTokens; ++i) {
    if (!work.inside || work.token(i) >= p.L) continue;
    const int64_t at = (int64_t(work.batch) * p.L + work.token(i)) * p.D + work.feature;
    p.grad_dependent[at] = T(key_sums[i]);
    p.grad_value[at] = T(value_sums[i]);
  }
}

constexpr int kSummedRows = 256;

// to[i] = sum of kSummedRows rows of from [rows, D]: called until one row is left, with one order of summation.
template <class W>
__global__ void __launch_bounds__(128) sum_rows(const W* from, int64_t rows, int D, W* to) {
  const int pieces = (D + 127) / 128, feature = int(blockIdx.x) % pieces * 128 + int(threadIdx.x);
  const int64_t group = int(blockIdx.x) / pieces;
  if (feature >= D) return;
  W sum = 0;
  for (int64_t row = group * kSummedRows; row < rows && row < (group + 1) * kSummedRows; ++row)
    sum += from[row * D + feature];
  to[group * D + feature] = sum;
}

}  // namespace longspan::cuda
