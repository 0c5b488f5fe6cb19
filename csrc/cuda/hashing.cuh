// Angular hashing with the argmax fused into the projection, as ops/hashing.py defines it: projections stay in
// registers, and of those only the largest and the smallest.
#pragma once
#include "cuda/tile.cuh"

namespace longspan::cuda {

constexpr int kMostFactors = 16;
constexpr int kHashedTokens = 64;  // of a block: 16 for each warp
constexpr int kHashedAxes = 32;    // of a tile
constexpr int kHashedFeatures = 32;

template <class T>
struct HashProblem {
  int B, H, num_tokens, D, R, axes;  // axes: of a round
  const T* query_key;
  int64_t batch, head, row;  // its strides
  const Wide<T>* rotations;  // [H, D, R, axes]
  const bool* key_mask;      // [B, T] or null
  int num_factors, factors[kMostFactors];
  int64_t masked_bucket;
  int64_t* buckets;  // [B, H, R, T]
};

// The first of the largest.
template <class W>
struct Largest {
  W value;
  int at;
  __device__ __forceinline__ void take(W other, int other_at) {
    if (other > value || (other == value && other_at < at)) value = other, at = other_at;
  }
  __device__ __forceinline__ void take_quad() {
#pragma unroll
    for (int lanes = 1; lanes <= 2; lanes *= 2) {
      const W other = __shfl_xor_sync(kWholeWarp, value, lanes);
      const int other_at = __shfl_xor_sync(kWholeWarp, at, lanes);
      take(other, other_at);
    }
  }
};

template <class T>
__global__ void __launch_bounds__(2 * kHashedTokens, sizeof(T) == 8 ? 3 : 4)
    lsh_hash(const LONGSPAN_GRID_CONSTANT HashProblem<T> problem) {
  using W = Wide<T>;
  constexpr int F = kHashedFeatures, N = kHashedAxes, threads = 2 * kHashedTokens, pitch = kPitch<W, F>;
  LONGSPAN_SHARED(shared);
  Carver carver(shared);
  W* tokens = carver.take<W>(kHashedTokens * pitch);
  W* axes = carver.take<W>(N * pitch);
  const int tiles = (problem.num_tokens + kHashedTokens - 1) / kHashedTokens;
  const int begin = int(blockIdx.x) % tiles * kHashedTokens, round = int(blockIdx.x) / tiles % problem.R;
  const int head = int(blockIdx.x) / tiles / problem.R % problem.H;
  const int batch = int(blockIdx.x) / tiles / problem.R / problem.H;
  const T* rows = problem.query_key + batch * problem.batch + head * problem.head;
  const W* rotations = problem.rotations + int64_t(head) * problem.D * problem.R * problem.axes + round * problem.axes;
  const int64_t feature_stride = int64_t(problem.R) * problem.axes;

  int64_t bucket[2] = {0, 0}, weight = 1;
  int low = 0;  // the first axis of a factor
  for (int factor = 0; factor < problem.num_factors; ++factor) {
    const int count = problem.factors[factor] / 2;
    Largest<W> most[2], least[2];  // of p, and of -p
#pragma unroll
    for (int r = 0; r < 2; ++r) most[r] = least[r] = {-W(INFINITY), count};
    for (int first = 0; first < count; first += N) {
      W products[N / 8][4];
      clear(products);
      for (int feature = 0; feature < problem.D; feature += F) {
        __syncthreads();  // everybody is done with what lies there
        for (int i = int(threadIdx.x); i < kHashedTokens * F; i += threads) {
          const int token = begin + i / F, d = feature + i % F;
          tokens[i / F * pitch + i % F] =
              token < problem.num_tokens && d < problem.D ? W(rows[token * problem.row + d]) : W(0);
        }
        for (int i = int(threadIdx.x); i < N * F; i += threads) {
          const int axis = first + i % N, d = feature + i / N;
          axes[i % N * pitch + i / N] =
              axis < count && d < problem.D ? rotations[d * feature_stride + low + axis] : W(0);
        }
        __syncthreads();
        add_products<W, F, N>(products, tokens + 16 * warp_id() * pitch, axes);
      }
#pragma unroll
      for (int n = 0; n < N / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int axis = first + score_column(n, e);
          if (axis >= count) continue;
          most[e / 2].take(products[n][e], axis);
          least[e / 2].take(-products[n][e], axis);
        }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      most[r].take_quad(), least[r].take_quad();
      bucket[r] += weight * (most[r].value >= least[r].value ? most[r].at : count + least[r].at);
    }
    weight *= 2 * count, low += count;
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int token = begin + 16 * warp_id() + tile_row(r);
    if (token >= problem.num_tokens || lane_id() % 4) continue;
    const bool masked = problem.key_mask && !problem.key_mask[int64_t(batch) * problem.num_tokens + token];
    problem.buckets[((int64_t(batch) * problem.H + head) * problem.R + round) * problem.num_tokens + token] =
        masked ? problem.masked_bucket : bucket[r];
  }
}

}  // namespace longspan::cuda
