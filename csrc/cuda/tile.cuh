// Products of tiles in shared memory, by one warp: 16 rows against a tile of columns. Two engines share one layout of
// the scores, so that kernels need not know which one runs: tensor cores for 16-bit numbers, fused multiply-adds for
// float and double (no rounding to TF32).
//
// Of scores [16 x N] lane (g = lane / 4, t = lane % 4) holds s[n][e]: row g + 8 (e / 2), column 8 n + 2 t + e % 2.
// Of sums [16 x D] it holds a[n][e]: the same row, column sum_column<T>(n, e).
#pragma once
#include "cuda/words.cuh"

namespace longspan::cuda {

// Elements of a row in shared memory: 16 bytes more than it needs, so that neighbouring rows lie in other banks.
template <class T, int D>
constexpr int kPitch = D + 16 / int(sizeof(T));

__device__ __forceinline__ int lane_id() { return int(threadIdx.x) % 32; }
__device__ __forceinline__ int warp_id() { return int(threadIdx.x) / 32; }

// Rows of this lane within its warp's 16: e / 2 = 0 or 1.
__device__ __forceinline__ int tile_row(int half_of_rows) { return lane_id() / 4 + 8 * half_of_rows; }
__device__ __forceinline__ int score_column(int n, int e) { return 8 * n + 2 * (lane_id() % 4) + e % 2; }

template <class T>
__device__ __forceinline__ int sum_column(int n, int e) {
  const int t = lane_id() % 4;
  if constexpr (sizeof(T) == 4) return 16 * (n / 2) + 4 * t + 2 * (n % 2) + e % 2;  // four neighbours: one load
  return 8 * n + 2 * t + e % 2;
}

template <class T>
struct alignas(16) Vector {
  static constexpr int size = 16 / int(sizeof(T));
  T at[size];
};
template <class T>
__device__ __forceinline__ Vector<T> load_vector(const T* from) {
  return *reinterpret_cast<const Vector<T>*>(from);
}

template <int N, class W>
__device__ __forceinline__ void clear(W (&sums)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) sums[n][e] = 0;
}

template <int N, class W>
__device__ __forceinline__ void multiply(W (&sums)[N][4], W factor) {
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) sums[n][e] *= factor;
}

// scores += rows[16 x D] columns[N x D]^T
template <class T, int D, int N>
__device__ __forceinline__ void add_products(Wide<T> (&scores)[N / 8][4], const T* rows, const T* columns) {
  constexpr int pitch = kPitch<T, D>;
  const int lane = lane_id();
  if constexpr (is_16_bit<T>) {
#pragma unroll
    for (int k = 0; k < D; k += 16) {
      uint32_t a[4];
      ldmatrix_x4(a, rows + (lane % 16) * pitch + k + lane / 16 * 8);
#pragma unroll
      for (int n = 0; n < N / 8; n += 2) {
        uint32_t b[4];  // of columns 8 n .. 8 n + 7: features k .. k + 7, k + 8 .. k + 15; of the next eight: the same
        ldmatrix_x4(b, columns + (8 * n + lane % 8 + lane / 16 * 8) * pitch + k + lane / 8 % 2 * 8);
        mma_m16n8k16<T>(scores[n], a, b[0], b[1]);
        mma_m16n8k16<T>(scores[n + 1], a, b[2], b[3]);
      }
    }
  } else {
    constexpr int step = Vector<T>::size;
    const T* upper = rows + tile_row(0) * pitch;
    const T* lower = rows + tile_row(1) * pitch;
#pragma unroll 2
    for (int k = 0; k < D; k += step) {
      const Vector<T> a0 = load_vector(upper + k), a1 = load_vector(lower + k);
#pragma unroll
      for (int n = 0; n < N / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const Vector<T> b = load_vector(columns + score_column(n, e) * pitch + k);
#pragma unroll
          for (int i = 0; i < step; ++i) {
            scores[n][e] += a0.at[i] * b.at[i];
            scores[n][e + 2] += a1.at[i] * b.at[i];
          }
        }
    }
  }
}

// scores = rows[16 x D] columns[N x D]^T
template <class T, int D, int N>
__device__ __forceinline__ void multiply_rows(Wide<T> (&scores)[N / 8][4], const T* rows, const T* columns) {
  clear(scores);
  add_products<T, D, N>(scores, rows, columns);
}

// sums[16 x D] += weights[16 x N] columns[N x D]
template <class T, int D, int N>
__device__ __forceinline__ void add_columns(
    Wide<T> (&sums)[D / 8][4], const Wide<T> (&weights)[N / 8][4], const T* columns) {
  constexpr int pitch = kPitch<T, D>;
  const int lane = lane_id();
  if constexpr (is_16_bit<T>) {
#pragma unroll
    for (int k = 0; k < N / 8; k += 2) {
      const uint32_t a[4] = {
          pack<T>(weights[k][0], weights[k][1]), pack<T>(weights[k][2], weights[k][3]),
          pack<T>(weights[k + 1][0], weights[k + 1][1]), pack<T>(weights[k + 1][2], weights[k + 1][3])};
#pragma unroll
      for (int n = 0; n < D / 8; n += 2) {
        uint32_t b[4];
        ldmatrix_x4_transposed(b, columns + (8 * k + lane % 16) * pitch + 8 * n + lane / 16 * 8);
        mma_m16n8k16<T>(sums[n], a, b[0], b[1]);
        mma_m16n8k16<T>(sums[n + 1], a, b[2], b[3]);
      }
    }
  } else {
    constexpr int step = Vector<T>::size;  // 4 or 2 columns of a row, which sum_column makes neighbours
    constexpr int tiles = step / 2;        // that lie in as many tiles
#pragma unroll
    for (int k = 0; k < N / 8; ++k)
#pragma unroll 1  // a quarter of the code, and of the time to compile it
      for (int source = 0; source < 4; ++source)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const Wide<T> w0 = __shfl_sync(kWholeWarp, weights[k][e], lane / 4 * 4 + source);
          const Wide<T> w1 = __shfl_sync(kWholeWarp, weights[k][e + 2], lane / 4 * 4 + source);
          const T* column = columns + (8 * k + 2 * source + e) * pitch;
#pragma unroll
          for (int n = 0; n < D / 8; n += tiles) {
            const Vector<T> b = load_vector(column + sum_column<T>(n, 0));
#pragma unroll
            for (int i = 0; i < step; ++i) {
              sums[n + i / 2][i % 2] += w0 * b.at[i];
              sums[n + i / 2][i % 2 + 2] += w1 * b.at[i];
            }
          }
        }
  }
}

}  // namespace longspan::cuda
