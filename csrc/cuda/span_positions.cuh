// Attention with soft spans, backward: gradients of positions, by tiles of lags. A block owns some lags of a table and
// meets all queries of the heads that share it, with the keys that these lags lead to.
#pragma once
#include "cuda/span_backward.cuh"

namespace longspan::cuda {

// The kernel over tiles of lags: positions are its rows, queries its columns, keys lie on diagonals.
template <class T, int D>
struct LagStorage {
  using Sizes = SpanShape<T, D, 1, 2, false>;
  static constexpr int pitch = kPitch<T, D>, diagonals = Sizes::columns + Sizes::rows;
  T *positions, *queries, *grad_out, *keys, *values;
  SpanQuery<T>* query_items;  // three tiles
  Key<T>* key_items;
  Wide<T>* sheared;

  __host__ __device__ explicit LagStorage(Carver& carver) {
    positions = carver.take<T>(Sizes::rows * pitch);
    queries = carver.take<T>(Sizes::buffers * Sizes::columns * pitch);
    grad_out = carver.take<T>(Sizes::buffers * Sizes::columns * pitch);
    keys = carver.take<T>(Sizes::buffers * diagonals * pitch);
    values = carver.take<T>(Sizes::buffers * diagonals * pitch);
    query_items = carver.take<SpanQuery<T>>(3 * Sizes::columns);
    key_items = carver.take<Key<T>>(3 * diagonals);
    sheared = carver.take<Wide<T>>(Sizes::rows / 16 * Sheared<Wide<T>, 32>::size);
  }
};

// The lags of a block, and the heads whose pairs it sums up: those of one table, or one of `groups` shares of them.
struct LagTile {
  int lag, group, table, tables, heads, pairs;

  __device__ __forceinline__ void pick(Work& work, int pair) const {
    work.batch = pair / heads, work.head = heads == 1 ? table : pair % heads;
  }
  template <class T>
  __device__ __forceinline__ Wide<T>* sums(const SpanProblem<T>& problem, int own) const {
    return problem.position_sums + (int64_t(group * tables + table) * problem.lags() + own) * problem.D;
  }
};
template <class T>
__device__ __forceinline__ LagTile lag_tile(const SpanProblem<T>& problem, int64_t block, int rows) {
  const int tiles = (problem.lags() + rows - 1) / rows;
  LagTile tile;
  tile.lag = int(block % tiles) * rows, tile.group = int(block / tiles % problem.groups);
  tile.table = int(block / tiles / problem.groups);
  tile.tables = problem.tables(), tile.heads = problem.pattern.H / tile.tables;
  tile.pairs = problem.pattern.B * tile.heads;
  return tile;
}

// Which queries meet keys of one head at the lags [lag, lag + rows); false: none.
template <class T>
__device__ __forceinline__ bool start_lags(const SpanProblem<T>& problem, Work& work, int lag, int rows) {
  const Pattern& pattern = problem.pattern;
  const int first = problem.first(), cached = pattern.S - pattern.T;
  const int far = pattern.reaches.far[work.batch * pattern.H + work.head];
  work.before = problem.both_ways() ? far - 1 : far, work.after = problem.both_ways() ? far - 1 : -1;
  if (lag > first + work.before || lag + rows - 1 < first - work.after) return false;
  work.step = 1, work.other_token = 0;
  work.begin = pattern.reaches.zeros ? cached : max(cached, lag - first);
  work.end = min(pattern.S, pattern.S - first + lag + rows - 1);
  return work.begin < work.end;
}

template <class T, int D>
__global__ void __launch_bounds__(LagStorage<T, D>::Sizes::threads, 2)
    span_backward_positions(const LONGSPAN_GRID_CONSTANT SpanProblem<T> problem) {
  using W = Wide<T>;
  using Storage = LagStorage<T, D>;
  using Sizes = typename Storage::Sizes;
  constexpr int N = Sizes::columns, R = Sizes::rows, pitch = kPitch<T, D>, threads = Sizes::threads;
  LONGSPAN_SHARED(shared);
  Carver carver(shared);
  const Storage storage(carver);
  const Pattern& pattern = problem.pattern;
  const LagTile own = lag_tile(problem, blockIdx.x, R);
  const int lag = own.lag, first_row = 16 * warp_id();
  const Sheared<W, 32> sheared{storage.sheared + warp_id() * Sheared<W, 32>::size};
  Work work;
  work.head = own.table;
  load_positions<T, D, R, threads>(storage.positions, problem, work, problem.first() - lag, -1);
  W sums[D / 8][4], slope = 0;
  clear(sums);

#pragma unroll 1
  for (int pair = own.group; pair < own.pairs; pair += problem.groups) {
    own.pick(work, pair);
    if (!start_lags(problem, work, lag, R)) continue;
    const uint32_t stream = head_stream(problem.dropout_seed, work);
    Work of_queries = work, of_keys = work;
    of_queries.shift = pattern.S - pattern.T;
    of_keys.shift = 0, of_keys.end = pattern.S;
    auto query_items = [&](int tile) { return storage.query_items + tile % 3 * N; };
    auto key_items = [&](int tile) { return storage.key_items + tile % 3 * Storage::diagonals; };
    auto put_items = [&](int tile) {
      const int begin = work.begin + tile * N;
      for (int i = int(threadIdx.x); i < N; i += threads)
        query_items(tile)[i] =
            item_of<true, true>(problem, work, pattern.column<Role::keys>(of_queries, begin + i), stream);
      for (int i = int(threadIdx.x); i < Storage::diagonals; i += threads)
        key_items(tile)[i] = item_of<false, true>(
            problem, work, pattern.column<Role::queries>(of_keys, begin + problem.first() - lag - (R - 1) + i), stream);
    };
    auto place_of = [&](T* tiles, int tile, int rows) { return tiles + tile % Sizes::buffers * rows * pitch; };
    auto fetch = [&](int tile) {
#pragma unroll 1
      for (int which = 0; which < 2; ++which) {
        load_rows<T, D, N, threads>(
            place_of(which ? storage.grad_out : storage.queries, tile, N), which ? problem.grad_out : problem.query,
            work, query_items(tile), problem.D, problem.aligned);
        load_rows<T, D, Storage::diagonals, threads>(
            place_of(which ? storage.values : storage.keys, tile, Storage::diagonals),
            which ? problem.value : problem.key, work, key_items(tile), problem.D, problem.aligned);
      }
    };
    __syncthreads();  // everybody is done with the last head
    put_items(0);
    __syncthreads();
    over_tiles<Sizes::buffers - 1>((work.end - work.begin + N - 1) / N, put_items, fetch, [&](int tile) {
#pragma unroll 1
      for (int c = 0; c < N; c += 16) {  // 16 lags against 16 queries, whose keys lie on 31 diagonals
        const T* queries = place_of(storage.queries, tile, N) + c * pitch;
        const T* grad_out = place_of(storage.grad_out, tile, N) + c * pitch;
        const int diagonal = c - first_row + R - 16;
        W scores[2][4], gradients[2][4], products[4][4];
        multiply_rows<T, D, 16>(scores, storage.positions + first_row * pitch, queries);
        auto over_tile = [&](auto&& body) {
#pragma unroll
          for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) body(n, e, score_column(n, e), score_column(n, e) - tile_row(e / 2) + 15);
        };
        const T* keys = place_of(storage.keys, tile, Storage::diagonals) + diagonal * pitch;
        multiply_rows<T, D, 32>(products, queries, keys);
        sheared.put(products);
        over_tile([&](int n, int e, int query, int column) { scores[n][e] += sheared.at(query, column); });
        const T* values = place_of(storage.values, tile, Storage::diagonals) + diagonal * pitch;
        multiply_rows<T, D, 32>(products, grad_out, values);
        sheared.put(products);
        over_tile([&](int n, int e, int query, int column) {
          gradients[n][e] = sheared.at(query, column);
          weigh_pair(
              problem, false, query_items(tile)[c + query], key_items(tile)[diagonal + column], scores[n][e],
              gradients[n][e], slope);
        });
        add_columns<T, D, 16>(sums, gradients, queries);
      }
    });
  }
  cp_async_wait<0>();

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = lag + first_row + tile_row(r);
    if (row >= problem.lags()) continue;
    W* to = own.sums(problem, row);
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
      store_pair<W>(
          to, sum_column<T>(n, 0), problem.D, false, sums[n][2 * r] * problem.scale,
          sums[n][2 * r + 1] * problem.scale);
  }
}

}  // namespace longspan::cuda
