// Attention with soft spans, as ops/span.py defines it: what a pair is, over the tiles of walk.cuh.
//
// A query at place p and a key at place s meet at lag = first + p - s, counted from the nearest key after which a query
// sees nothing: causal, first = -1 and the lag is the distance; both ways, first = max_span - 1. Pairs of one lag lie
// on a diagonal of a tile; so what belongs to lags reaches the pairs of 16 queries through shared memory, sheared.
#pragma once
#include "cuda/walk.cuh"

namespace longspan::cuda {

template <class T>
struct SpanProblem : Problem<T> {
  const T* positions;  // [H or 1, position_rows, D]; no rows: scores do not depend on the distance
  int64_t position_head;
  int position_rows;
  const Wide<T>* span;  // by batch, head and token; strides are 0 where it does not depend on them
  int64_t span_batch, span_head, span_token;
  Wide<T> ramp, inverse_ramp;
  int max_span;
  // Backward.
  Wide<T>* grad_span;      // [B, H, T]
  Wide<T>* position_sums;  // [groups, H or 1, lags, D]
  int groups;

  __host__ __device__ __forceinline__ bool both_ways() const { return this->pattern.reaches.both_ways; }
  __host__ __device__ __forceinline__ int first() const { return both_ways() ? max_span - 1 : -1; }
  __host__ __device__ __forceinline__ int tables() const { return position_head ? this->pattern.H : 1; }
  __host__ __device__ __forceinline__ int lags() const { return both_ways() ? 2 * max_span - 1 : max_span; }

  // The row of `positions` for keys that stand `offset` places after the query, and any row where there is none.
  __device__ __forceinline__ int position_row(int offset) const {
    int row = -1 - offset;
    if (both_ways()) row = position_rows == 2 * max_span - 1 ? offset + max_span - 1 : abs(offset);
    return min(max(row, 0), position_rows - 1);
  }
};

// A query in a tile.
template <class T>
struct alignas(16) SpanQuery : Query<T> {
  int place;
  Wide<T> span;
};

template <bool is_query, bool backward, class T>
__device__ __forceinline__ auto item_of(
    const SpanProblem<T>& problem, const Work& work, const Place& place, uint32_t stream) {
  const Problem<T>& plain = problem;
  if constexpr (is_query) {
    SpanQuery<T> query{item_of<true, backward>(plain, work, place, stream), place.place, Wide<T>(0)};
    if (place.token < 0) return query;
    query.span =
        problem
            .span[work.batch * problem.span_batch + work.head * problem.span_head + place.token * problem.span_token];
    if (backward && query.lse == minus_infinity<Wide<T>>()) query.lse = -query.lse;  // sees nothing: weighs nothing
    return query;
  } else {
    return item_of<false, backward>(plain, work, place, stream);
  }
}

// How far a key is, and what the soft mask makes of it.
template <class T>
__device__ __forceinline__ int distance_of(const SpanProblem<T>& problem, const SpanQuery<T>& query, int key_place) {
  return problem.both_ways() ? abs(query.place - key_place) : query.place - 1 - key_place;
}
template <class T>
__device__ __forceinline__ Wide<T> soft_mask(const SpanProblem<T>& problem, const SpanQuery<T>& query, int distance) {
  const Wide<T> m = (query.span - Wide<T>(distance)) * problem.inverse_ramp + Wide<T>(1);
  return m < 0 ? Wide<T>(0) : m > 1 ? Wide<T>(1) : m;
}

// On the ramp, ends included: where the mask has a slope.
template <class T>
__device__ __forceinline__ bool on_ramp(const SpanProblem<T>& problem, const SpanQuery<T>& query, int distance) {
  const Wide<T> x = Wide<T>(distance);
  return x >= query.span && x <= query.span + problem.ramp;
}

// Whether all pairs of a tile see each other before the ramp begins.
template <Role role, class T>
__device__ __forceinline__ bool before_ramp(const SpanProblem<T>& problem, const Work& work, int begin, int end) {
  if (problem.span_token || !problem.pattern.template all_visible<role>(work, begin, end)) return false;
  const int one = work.place + work.rows - 1 - begin, other = end - 1 - work.place;
  const int farthest = role == Role::queries || problem.both_ways() ? max(one, other) : other;
  return Wide<T>(farthest) < problem.span[work.batch * problem.span_batch + work.head * problem.span_head];
}

// What a lane computes, and what it reads, of 16 queries by `width` diagonals; the memory of one warp.
template <class W, int width>
struct Sheared {
  static constexpr int pitch = width + 9;
  static constexpr int size = 16 * pitch;
  W* memory;

  __device__ __forceinline__ W& at(int query, int column) const { return memory[query * pitch + column]; }

  __device__ __forceinline__ void put(const W (&from)[width / 8][4]) const {
    __syncwarp();
#pragma unroll
    for (int n = 0; n < width / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) at(tile_row(e / 2), score_column(n, e)) = from[n][e];
    __syncwarp();
  }
};

// Rows of `positions` for keys `offset` + i * direction places after a query, i = 0 .. count - 1, to shared memory.
template <class T, int D, int count, int threads>
__device__ __forceinline__ void load_positions(
    T* to, const SpanProblem<T>& problem, const Work& work, int offset, int direction) {
  constexpr int pitch = kPitch<T, D>, step = Vector<T>::size, vectors = D / step, total = count * vectors;
  const T* table = problem.positions + work.head * problem.position_head;
  auto source = [&](int row) { return table + int64_t(problem.position_row(offset + row * direction)) * problem.D; };
  if (problem.aligned) {
#pragma unroll(is_16_bit<T>&& D <= 96 ? 8 : 1)  // where registers are left
    for (int turn = 0; turn < (total + threads - 1) / threads; ++turn) {
      const int i = turn * threads + int(threadIdx.x), row = i / vectors, column = i % vectors * step;
      const bool copy = column < problem.D;
      if (total % threads == 0 || i < total)
        cp_async_16(to + row * pitch + column, copy ? source(row) + column : table, copy);
    }
    return;
  }
#pragma unroll 1
  for (int i = int(threadIdx.x); i < total; i += threads) {
    const int row = i / vectors, column = i % vectors * step;
#pragma unroll
    for (int j = 0; j < step; ++j)
      to[row * pitch + column + j] = column + j < problem.D ? source(row)[column + j] : T(0.f);
  }
}

// Tiles of one kernel: `stationary` tensors of rows, two of columns, `diagonal` ones of which a tile needs a row for
// each of its diagonals.
template <class T, int D, int stationary_, int diagonal, bool wide_shear>
struct SpanShape {
  static constexpr int stationary = stationary_;
  static constexpr size_t bytes(int rows, int columns, int buffers) {
    return size_t(stationary * rows + buffers * (2 * columns + diagonal * (columns + rows))) * kPitch<T, D> *
               sizeof(T) +
           rows * ((wide_shear ? columns + 16 : 32) + 9) * sizeof(Wide<T>) +
           (rows + 3 * (2 * columns + rows)) * sizeof(SpanQuery<T>) + 2048;
  }
  static constexpr bool fits(int rows, int columns, int buffers) {
    return bytes(rows, columns, buffers) <= kMostSharedMemory;
  }
  static constexpr int most = sizeof(T) == 8 ? 32 : 64;
  static constexpr int rows = fits(most, 16, 1) ? most : fits(32, 16, 1) ? 32 : 16;
  static constexpr int threads = 2 * rows;
  static constexpr int columns = sizeof(T) < 8 && fits(rows, 32, 1) ? 32 : 16;
  static constexpr int buffers = fits(rows, columns, 2) ? 2 : 1;
};

// Kernels over tiles of queries or keys: the two columns tensors, and positions of the tile's diagonals.
template <class T, int D, bool backward, Role role>
struct SpanStorage {
  using Sizes = SpanShape<T, D, backward ? 2 : 1, 1, role == Role::queries>;
  using Row = std::conditional_t<role == Role::queries, SpanQuery<T>, Key<T>>;
  using Column = std::conditional_t<role == Role::queries, Key<T>, SpanQuery<T>>;
  static constexpr int head_size = D, pitch = kPitch<T, D>, diagonals = Sizes::columns + Sizes::rows;
  static constexpr int width = role == Role::queries ? Sizes::columns + 16 : 32;
  static constexpr bool is_backward = backward, counts_copies = false;
  static constexpr Role rows_are = role;
  T* rows[2];
  T* columns[2];
  T* positions;
  Row* row_items;
  Column* column_items;  // three tiles
  Wide<T>* sheared;      // of each warp

  __host__ __device__ explicit SpanStorage(Carver& carver) {
    for (int i = 0; i < Sizes::stationary; ++i) rows[i] = carver.take<T>(Sizes::rows * pitch);
    for (int i = 0; i < 2; ++i) columns[i] = carver.take<T>(Sizes::buffers * Sizes::columns * pitch);
    positions = carver.take<T>(Sizes::buffers * diagonals * pitch);
    row_items = carver.take<Row>(Sizes::rows);
    column_items = carver.take<Column>(3 * Sizes::columns);
    sheared = carver.take<Wide<T>>(Sizes::rows / 16 * Sheared<Wide<T>, width>::size);
  }
  __device__ __forceinline__ T* column_tile(int which, int tile) const {
    return (which ? columns[1] : columns[0]) + tile % Sizes::buffers * Sizes::columns * pitch;
  }
  __device__ __forceinline__ T* position_tile(int tile) const {
    return positions + tile % Sizes::buffers * diagonals * pitch;
  }
  __device__ __forceinline__ Column* item_tile(int tile) const { return column_items + tile % 3 * Sizes::columns; }
  __device__ __forceinline__ Sheared<Wide<T>, width> shear() const {
    return {sheared + warp_id() * Sheared<Wide<T>, width>::size};
  }
};

// The offset that row 0 of a tile of positions belongs to; they ascend.
template <class T, int D, bool backward, Role role>
__device__ __forceinline__ int nearest_offset(const Work& work, const SpanStorage<T, D, backward, role>&, int tile) {
  using Sizes = typename SpanStorage<T, D, backward, role>::Sizes;
  const int column = work.begin + tile * Sizes::columns;
  return role == Role::queries ? column - (work.place + Sizes::rows - 1) : work.place - (column + Sizes::columns - 1);
}

// As walk, with positions.
template <class T, int D, bool backward, Role role, class Body>
__device__ __forceinline__ void walk_spans(
    const SpanProblem<T>& problem, const Work& work, const SpanStorage<T, D, backward, role>& storage,
    const Rows<const T>& row_first, const Rows<const T>& row_second, const Rows<const T>& column_first,
    const Rows<const T>& column_second, Body&& body) {
  using S = SpanStorage<T, D, backward, role>;
  walk(problem, work, storage, row_first, row_second, column_first, column_second, body, [&](int tile) {
    if (problem.position_rows)
      load_positions<T, D, S::diagonals, S::Sizes::threads>(
          storage.position_tile(tile), problem, work, nearest_offset(work, storage, tile), 1);
  });
}

// scores += query . position of each pair. By tiles of queries: 16 queries against their diagonals of all columns.
template <class T, int D, bool backward>
__device__ __forceinline__ const T* own_diagonals(
    const SpanStorage<T, D, backward, Role::queries>& storage, int tile, int first_row) {
  using Sizes = typename SpanStorage<T, D, backward, Role::queries>::Sizes;
  return storage.position_tile(tile) + (Sizes::rows - 16 - first_row) * kPitch<T, D>;
}
template <class T, int D, bool backward, int tiles>
__device__ __forceinline__ void add_positions(
    const SpanStorage<T, D, backward, Role::queries>& storage, int tile, int first_row, const T*,
    Wide<T> (&scores)[tiles][4]) {
  constexpr int width = 8 * tiles + 16;
  const auto sheared = storage.shear();
  Wide<T> products[width / 8][4];
  multiply_rows<T, D, width>(
      products, storage.rows[0] + first_row * kPitch<T, D>, own_diagonals(storage, tile, first_row));
  sheared.put(products);
#pragma unroll
  for (int n = 0; n < tiles; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) scores[n][e] += sheared.at(tile_row(e / 2), score_column(n, e) - tile_row(e / 2) + 15);
}

// By tiles of keys: 16 of the queries in the columns at a time, against the diagonals of 16 keys.
template <class T, int D, bool backward, int tiles>
__device__ __forceinline__ void add_positions(
    const SpanStorage<T, D, backward, Role::keys>& storage, int tile, int first_row, const T* queries,
    Wide<T> (&scores)[tiles][4]) {
  constexpr int pitch = kPitch<T, D>;
  const auto sheared = storage.shear();
#pragma unroll
  for (int n = 0; n < tiles; n += 2) {
    Wide<T> products[4][4];
    const int diagonal = first_row - 8 * n + 8 * tiles - 16;
    multiply_rows<T, D, 32>(products, queries + 8 * n * pitch, storage.position_tile(tile) + diagonal * pitch);
    sheared.put(products);
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        scores[n + m][e] += sheared.at(score_column(m, e), tile_row(e / 2) - score_column(m, e) + 15);
  }
}

}  // namespace longspan::cuda
