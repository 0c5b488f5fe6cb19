// How a block of threads walks a tile of rows past the tiles of columns that they meet, two buffers deep: while one is
// worked on, the next is on its way. Nothing is added by two blocks, so every result has one order of summation: runs
// are equal to the bit. (The price is that the backward pass computes scores twice, once for each role.)
#pragma once
#include "cuda/problem.cuh"

namespace longspan::cuda {

// Tiles of one kernel: how many rows and columns, and how many buffers, that its shared memory holds.
template <class T, int D, bool backward>
struct Shape {
  static constexpr int rows = sizeof(T) == 8 ? 32 : 64;
  static constexpr int threads = 2 * rows;  // a warp for 16 rows
  static constexpr int stationary = backward ? 2 : 1;
  static constexpr size_t bytes(int columns, int buffers) {
    return size_t(stationary * rows + 2 * buffers * columns) * kPitch<T, D> * sizeof(T) +
           (rows + 3 * columns) * sizeof(Query<T>) + rows * columns * sizeof(uint16_t) + 1024;
  }
  static constexpr bool fits(int columns, int buffers) { return bytes(columns, buffers) <= kMostSharedMemory; }
  static constexpr int widest = sizeof(T) == 8 && backward ? 16 : 32;
  static constexpr int columns = fits(widest, 2) ? widest : widest > 16 && fits(32, 1) ? 32 : fits(16, 1) ? 16 : 8;
  static constexpr int buffers = fits(columns, 2) ? 2 : 1;
  static constexpr int blocks = !is_16_bit<T> || D > 64 ? 2
                                : backward              ? 3
                                                        : 4;  // at a time, that registers are left for
};

// The shared memory of one kernel.
template <class T, int D, bool backward, Role role>
struct Storage {
  using Sizes = Shape<T, D, backward>;
  using Row = Item<T, role == Role::queries>;
  using Column = Item<T, role == Role::keys>;
  static constexpr int head_size = D, pitch = kPitch<T, D>;
  static constexpr bool is_backward = backward, counts_copies = true;
  static constexpr Role rows_are = role;
  T* rows[2];     // query and, backward, grad_out; or key and value
  T* columns[2];  // the other two, `buffers` tiles each
  Row* row_items;
  Column* column_items;  // three tiles
  uint16_t* copies;      // [rows, columns]; null unless keys are deduplicated: many blocks fit without

  __host__ __device__ Storage(Carver& carver, bool deduplicate) {
    for (int i = 0; i < Sizes::stationary; ++i) rows[i] = carver.take<T>(Sizes::rows * pitch);
    for (int i = 0; i < 2; ++i) columns[i] = carver.take<T>(Sizes::buffers * Sizes::columns * pitch);
    row_items = carver.take<Row>(Sizes::rows);
    column_items = carver.take<Column>(3 * Sizes::columns);
    copies = deduplicate ? carver.take<uint16_t>(Sizes::rows * Sizes::columns) : nullptr;
  }
  __device__ __forceinline__ T* column_tile(int which, int tile) const {
    return (which ? columns[1] : columns[0]) + tile % Sizes::buffers * Sizes::columns * pitch;
  }
  __device__ __forceinline__ Column* item_tile(int tile) const { return column_items + tile % 3 * Sizes::columns; }
};

// Rows of the tokens of `items` from global to shared memory; zeros for nobody, and past the head size.
template <class T, int D, int count, int threads, class AnyItem>
__device__ __forceinline__ void load_rows(
    T* to, const Rows<const T>& from, const Work& work, const AnyItem* items, int head_size, bool aligned) {
  constexpr int pitch = kPitch<T, D>, step = Vector<T>::size, vectors = D / step, total = count * vectors;
  const T* head = from.data + work.batch * from.batch + work.head * from.head;
  if (is_16_bit<T> && aligned) {  // most of what the tensor cores would wait for: few instructions
    constexpr int turns = (total + threads - 1) / threads;
    int tokens[turns];  // all of them first: copies keep their order with other loads
#pragma unroll
    for (int turn = 0; turn < turns; ++turn) {
      const unsigned i = turn * threads + threadIdx.x;
      tokens[turn] = total % threads == 0 || i < total ? items[i / vectors].token : kNobody;
    }
#pragma unroll
    for (int turn = 0; turn < turns; ++turn) {
      const unsigned i = turn * threads + threadIdx.x;
      const int row = int(i / vectors), column = int(i % vectors) * step;
      const bool copy = tokens[turn] >= 0 && column < head_size;
      if (total % threads == 0 || i < total)
        cp_async_16(to + row * pitch + column, copy ? head + tokens[turn] * from.row + column : from.data, copy);
    }
    return;
  }
#pragma unroll 1
  for (int i = int(threadIdx.x); i < total; i += threads) {
    const int row = i / vectors, column = i % vectors * step, token = items[row].token;
    const T* source = head + token * from.row + column;
    T* place = to + row * pitch + column;
    if (aligned) {
      const bool copy = token >= 0 && column < head_size;
      cp_async_16(place, copy ? source : from.data, copy);
    } else {
#pragma unroll
      for (int j = 0; j < step; ++j) place[j] = token >= 0 && column + j < head_size ? source[j] : T(0.f);
    }
  }
}

// Calls body(tile) for each of `tiles`, while the next, where there is a buffer for it, is fetched. Who stands in a
// tile, put_items(tile), is known one barrier before fetch(tile); that of the first tile before the call.
template <int ahead, class PutItems, class Fetch, class Body>
__device__ __forceinline__ void over_tiles(int tiles, PutItems&& put_items, Fetch&& fetch, Body&& body) {
  if (ahead && tiles) fetch(0);
  cp_async_commit();
  for (int tile = 0; tile < tiles; ++tile) {
    const int next = tile + ahead;
    if (next > 0 && next < tiles) put_items(next);  // nobody reads these: three tiles of items, one barrier apart
    __syncthreads();                                // everybody is done with the buffer that is filled now
    if (next < tiles) fetch(next);
    cp_async_commit();
    cp_async_wait<ahead>();
    __syncthreads();
    body(tile);
  }
  cp_async_wait<0>();
}

struct NothingMore {
  __device__ __forceinline__ void operator()(int) const {}
};

// Walks the columns of a tile of rows: body(tile, items, columns of the first tensor, of the second) for each tile;
// fetch_more(tile) starts to load what else it needs.
template <class AnyProblem, class AnyStorage, class T, class Body, class FetchMore = NothingMore>
__device__ __forceinline__ void walk(
    const AnyProblem& problem, const Work& work, const AnyStorage& storage, const Rows<const T>& row_first,
    const Rows<const T>& row_second, const Rows<const T>& column_first, const Rows<const T>& column_second, Body&& body,
    FetchMore&& fetch_more = {}) {
  using Sizes = typename AnyStorage::Sizes;
  constexpr int N = Sizes::columns, D = AnyStorage::head_size, threads = Sizes::threads;
  constexpr bool backward = AnyStorage::is_backward, rows_are_queries = AnyStorage::rows_are == Role::queries;
  constexpr Role role = AnyStorage::rows_are;
  const Pattern& pattern = problem.pattern;
  const uint32_t stream = head_stream(problem.dropout_seed, work);
  const int tiles = work.end > work.begin ? (work.end - work.begin + N - 1) / N : 0;

  auto put_items = [&](int tile) {
    for (int i = int(threadIdx.x); i < N; i += threads)
      storage.item_tile(tile)[i] = item_of<!rows_are_queries, backward>(
          problem, work, pattern.column<role>(work, work.begin + tile * N + i), stream);
  };
  auto fetch = [&](int tile) {
#pragma unroll(is_16_bit<T> && !backward && D <= 96 ? 2 : 1)
    for (int which = 0; which < 2; ++which)
      load_rows<T, D, N, threads>(
          storage.column_tile(which, tile), which ? column_second : column_first, work, storage.item_tile(tile),
          problem.D, problem.aligned);
    fetch_more(tile);
  };
  // Every pair of the tile; the kernels' own loops over pairs are unrolled, which this would not survive.
  auto count_copies = [&]<class S>(const S& storage, int tile) {
    for (int i = int(threadIdx.x); i < Sizes::rows * N; i += threads) {
      const int row = storage.row_items[i / N].token, column = storage.item_tile(tile)[i % N].token;
      const int query = rows_are_queries ? row : column, key = rows_are_queries ? column : row;
      storage.copies[i] = query >= 0 && key >= 0 ? pattern.copies(work, query, key) : 1;
    }
    __syncthreads();
  };
  for (int i = int(threadIdx.x); i < Sizes::rows; i += threads)
    storage.row_items[i] = item_of<rows_are_queries, backward>(problem, work, pattern.row<role>(work, i), stream);
  put_items(0);
  __syncthreads();
#pragma unroll 1
  for (int which = 0; which < Sizes::stationary; ++which)
    load_rows<T, D, Sizes::rows, threads>(
        which ? storage.rows[1] : storage.rows[0], which ? row_second : row_first, work, storage.row_items, problem.D,
        problem.aligned);
  over_tiles<Sizes::buffers - 1>(tiles, put_items, fetch, [&](int tile) {
    if constexpr (AnyStorage::counts_copies)
      if (pattern.chunks.deduplicate) count_copies(storage, tile);
    body(tile, storage.item_tile(tile), storage.column_tile(0, tile), storage.column_tile(1, tile));
  });
}

// Calls body(n, e, the query, the key) for each pair of this lane in a tile.
template <Role role, int N, class Row, class Column, class Body>
__device__ __forceinline__ void over_pairs(const Row (&rows)[2], const Column* columns, Body&& body) {
#pragma unroll
  for (int n = 0; n < N / 8; ++n)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const Column& column = columns[score_column(n, c)];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if constexpr (role == Role::queries)
          body(n, 2 * r + c, rows[r], column);
        else
          body(n, 2 * r + c, column, rows[r]);
      }
    }
}

// Products of queries and keys become scores in units of log 2; -inf where the query does not see the key.
template <Role role, int N, class T, int D, bool backward, class Row, class Column>
__device__ __forceinline__ void score_pairs(
    const Problem<T>& problem, const Work& work, const Storage<T, D, backward, role>& storage, int tile, int first_row,
    const Row (&rows)[2], const Column* columns, Wide<T> (&scores)[N / 8][4]) {
  using W = Wide<T>;
  if (problem.factor) {
    over_pairs<role, N>(rows, columns, [&](int n, int e, const auto&, const auto& key) { scores[n][e] *= key.factor; });
  } else {
    multiply(scores, problem.scale * kLog2e<W>);  // and no look at the keys where all are visible
  }
  const int begin = work.begin + tile * N;
  if (problem.pattern.template all_visible<role>(work, begin, begin + N)) return;
  over_pairs<role, N>(rows, columns, [&](int n, int e, const auto& query, const auto& key) {
    if (!query.sees(key)) scores[n][e] = minus_infinity<W>();
  });
  if (problem.pattern.chunks.deduplicate)
#pragma unroll
    for (int n = 0; n < N / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        scores[n][e] -= log2_fast(W(storage.copies[(first_row + tile_row(e / 2)) * N + score_column(n, e)]));
}

}  // namespace longspan::cuda
