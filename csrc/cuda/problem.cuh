// One attention, as all of its kernels see it, and what a query and a key bring to each of their pairs.
#pragma once
#include "cuda/pattern.cuh"
#include "cuda/tile.cuh"

namespace longspan::cuda {

// A tensor [B, H, tokens, D] whose last dimension is contiguous; strides in elements.
template <class T>
struct Rows {
  T* data;
  int64_t batch, head, row;
  __device__ __forceinline__ T* at(const Work& work, int token) const {
    return data + work.batch * batch + work.head * head + token * row;
  }
};

constexpr int kWidestTile = 128;  // heads: wider ones have no tiles, and are not cut into shares
constexpr int kRowsOfWarps = 4;   // of a block whose warps have a row each

// The row of this warp, of B H tokens; false: there is none.
__device__ __forceinline__ bool own_row(int B, int H, int tokens, Work& work, int& token) {
  const int64_t at = int64_t(blockIdx.x) * kRowsOfWarps + warp_id();
  if (at >= int64_t(B) * H * tokens) return false;
  work.batch = int(at / tokens / H), work.head = int(at / tokens % H), token = int(at % tokens);
  return true;
}

template <class T>
struct Problem {
  Pattern pattern;
  int D;
  bool aligned;  // rows of query, key, value and grad_out can be read 16 bytes at a time
  Wide<T> scale;
  const int64_t* dropout_seed;  // null: no dropout
  uint32_t dropout_threshold;
  Wide<T> keep_scale;  // 1 / (1 - p)
  Rows<const T> query, key, value;
  const Wide<T>* factor;  // [B, H, T]: one over the length of each key, where the pattern is shared; else null
  Rows<T> out;
  Wide<T>* lse;  // [B, H, T]
  // Rounds follow each other: all but the first take up the result of those before, all but the last leave it here. So
  // do shares of columns.
  Rows<Wide<T>> running;
  bool resume, last;
  // Backward.
  Rows<const T> grad_out;
  const Wide<T>* delta;  // [B, H, T]
  Rows<T> grad_query, grad_key, grad_value;
  // Where set, gradients are added to these sums instead, those of keys to the same as those of queries.
  Rows<Wide<T>> query_sums, value_sums;
};

template <class T>
constexpr T kLog2e = T(1.4426950408889634);

template <class T>
__device__ __forceinline__ T minus_infinity() {
  return -T(INFINITY);
}

// A key in a tile, with what it brings to each of its pairs.
template <class T>
struct alignas(16) Key : Place {
  Wide<T> factor;  // scale, log2(e) and, where the pattern is shared, one over its length
};

// A query in a tile.
template <class T>
struct alignas(16) Query : Sight {
  int token;
  uint32_t word, second;  // what its dropout draws share
  Wide<T> lse, delta;     // backward; lse in units of log 2
};

template <class T, bool is_query>
using Item = std::conditional_t<is_query, Query<T>, Key<T>>;

// What the draws of a head share.
__device__ __forceinline__ uint32_t head_stream(const int64_t* seed, const Work& work) {
  if (!seed) return 0;
  const uint64_t bits = uint64_t(*seed);
  const uint32_t stream = mix(mix(uint32_t(bits) + kCounterStep) ^ uint32_t(bits >> 32));
  return next_counter(next_counter(stream, uint32_t(work.batch)), uint32_t(work.head));
}

template <bool is_query, bool backward, class T>
__device__ __forceinline__ Item<T, is_query> item_of(
    const Problem<T>& problem, const Work& work, const Place& place, uint32_t stream) {
  using W = Wide<T>;
  const int64_t at = problem.pattern.at(work, place.token);
  if constexpr (is_query) {
    Query<T> query{problem.pattern.sight(work, place), place.token};
    if (problem.dropout_seed) {
      query.word = next_counter(stream, uint32_t(place.token));
      query.second = second_word(query.word);
    }
    if (backward && place.token >= 0) query.lse = problem.lse[at] * kLog2e<W>, query.delta = problem.delta[at];
    return query;
  } else {
    Key<T> key{place, problem.scale * kLog2e<W>};
    if (problem.factor && place.token >= 0) key.factor *= problem.factor[at];
    return key;
  }
}

// p of a score in units of log 2. Where scores are huge, lse has been rounded by more than 1: p is at most 1 all the
// same.
template <class T>
__device__ __forceinline__ Wide<T> probability(Wide<T> score, const Query<T>& query) {
  using W = Wide<T>;
  if (score == minus_infinity<W>()) return 0;
  const W exponent = score - query.lse;
  return exp2_fast(exponent < 0 ? exponent : W(0));
}

// What attention dropout makes of a pair: 1 / (1 - p), or 0.
template <class T>
__device__ __forceinline__ Wide<T> keep_of(const Problem<T>& problem, const Query<T>& query, int key) {
  uint32_t drawn;
  draw(query.word, query.second, uint32_t(key), drawn);
  return drawn >= problem.dropout_threshold ? problem.keep_scale : Wide<T>(0);
}

template <class T>
__device__ __forceinline__ void store_pair(T* to, int column, int head_size, bool aligned, Wide<T> a, Wide<T> b) {
  struct alignas(2 * sizeof(T)) Pair {
    T a, b;
  };
  if (aligned) {
    if (column < head_size) *reinterpret_cast<Pair*>(to + column) = {T(a), T(b)};
    return;
  }
  if (column < head_size) to[column] = T(a);
  if (column + 1 < head_size) to[column + 1] = T(b);
}

template <class W>
__device__ __forceinline__ void add_pair(W* to, int column, int head_size, W a, W b) {
  if (column < head_size) to[column] += a;
  if (column + 1 < head_size) to[column + 1] += b;
}

}  // namespace longspan::cuda
