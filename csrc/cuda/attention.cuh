// Attention over tiles, forward and backward, for every pattern (pattern.cuh) and both engines (tile.cuh). As ops/tiled.py
// and ops/windows.py define it:
//
//     out = sum_j p_j keep_j v_j,   p_j = exp(s_j - lse),   s_j = scale q . k_j
//     ds_j = p_j (keep_j grad_out . v_j - delta),   delta = out . grad_out - grad_lse
//
// One block of threads owns a tile of rows and walks the tiles of columns that they meet, two buffers deep: while one is
// worked on, the next is on its way. Nothing is added by two blocks, so every result has one order of summation: runs
// are equal to the bit. (The price is that the backward pass computes scores twice, once for each role.)
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
  // Rounds follow each other: all but the first take up the result of those before, all but the last leave it here.
  Rows<Wide<T>> running;
  bool resume, last;
  // Backward.
  Rows<const T> grad_out;
  const Wide<T>* delta;  // [B, H, T]
  Rows<T> grad_query, grad_key, grad_value;
  // Where set, gradients are added to these sums instead, and grad_query is that of keys too.
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

// Tiles of one kernel: how many rows and columns, and how many buffers, that its shared memory holds.
template <class T, int D, bool backward>
struct Shape {
  static constexpr int rows = sizeof(T) == 8 ? 32 : 64;
  static constexpr int threads = 2 * rows;  // a warp for 16 rows
  static constexpr int stationary = backward ? 2 : 1;
  static constexpr size_t bytes(int columns, int buffers) {
    return size_t(stationary * rows + 2 * buffers * columns) * kPitch<T, D> * sizeof(T) +
           (rows + 3 * columns) * sizeof(Query<T>) + rows * columns + 1024;
  }
  static constexpr bool fits(int columns, int buffers) { return bytes(columns, buffers) <= kMostSharedMemory; }
  static constexpr int widest = is_16_bit<T> && !backward ? 64 : 32;
  static constexpr int columns = fits(widest, 2) ? widest : fits(32, 1) ? 32 : fits(16, 1) ? 16 : 8;
  static constexpr int buffers = fits(columns, 2) ? 2 : 1;
};

// The shared memory of one kernel.
template <class T, int D, bool backward, Role role>
struct Storage {
  using Sizes = Shape<T, D, backward>;
  using Row = Item<T, role == Role::queries>;
  using Column = Item<T, role == Role::keys>;
  static constexpr int pitch = kPitch<T, D>;
  T* rows[2];     // query and, backward, grad_out; or key and value
  T* columns[2];  // the other two, `buffers` tiles each
  Row* row_items;
  Column* column_items;    // three tiles
  unsigned char* copies;   // [rows, columns], to deduplicate

  __host__ __device__ explicit Storage(Carver& carver) {
    for (int i = 0; i < Sizes::stationary; ++i) rows[i] = carver.take<T>(Sizes::rows * pitch);
    for (int i = 0; i < 2; ++i) columns[i] = carver.take<T>(Sizes::buffers * Sizes::columns * pitch);
    row_items = carver.take<Row>(Sizes::rows);
    column_items = carver.take<Column>(3 * Sizes::columns);
    copies = carver.take<unsigned char>(Sizes::rows * Sizes::columns);
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
  constexpr int pitch = kPitch<T, D>, step = Vector<T>::size, vectors = D / step;
  for (int i = int(threadIdx.x); i < count * vectors; i += threads) {
    const int row = i / vectors, column = i % vectors * step, token = items[row].token;
    T* place = to + row * pitch + column;
    const bool copy = token >= 0 && column < head_size;
    if (aligned) {
      cp_async_16(place, copy ? from.at(work, token) + column : from.data, copy);
    } else {
#pragma unroll
      for (int j = 0; j < step; ++j)
        place[j] = copy && column + j < head_size ? from.at(work, token)[column + j] : T(0.f);
    }
  }
}

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

// Walks the columns of a tile of rows: body(tile, items, columns of the first tensor, of the second) for each tile.
template <Role role, bool backward, class T, int D, class Body>
__device__ __forceinline__ void walk(
    const Problem<T>& problem, const Work& work, const Storage<T, D, backward, role>& storage,
    const Rows<const T>& row_first, const Rows<const T>& row_second, const Rows<const T>& column_first,
    const Rows<const T>& column_second, Body&& body) {
  using Sizes = Shape<T, D, backward>;
  constexpr int N = Sizes::columns, threads = Sizes::threads, ahead = Sizes::buffers - 1;
  constexpr bool rows_are_queries = role == Role::queries;
  const Pattern& pattern = problem.pattern;
  const uint32_t stream = head_stream(problem.dropout_seed, work);
  const int tiles = work.end > work.begin ? (work.end - work.begin + N - 1) / N : 0;

  auto put_items = [&](int tile) {
    for (int i = int(threadIdx.x); i < N; i += threads)
      storage.item_tile(tile)[i] = item_of<!rows_are_queries, backward>(
          problem, work, pattern.column<role>(work, work.begin + tile * N + i), stream);
  };
  auto fetch = [&](int tile) {
#pragma unroll 1
    for (int which = 0; which < 2; ++which)
      load_rows<T, D, N, threads>(
          storage.column_tile(which, tile), which ? column_second : column_first, work, storage.item_tile(tile), problem.D,
          problem.aligned);
  };
  // Every pair of the tile; the kernels' own loops over pairs are unrolled, which this would not survive.
  auto count_copies = [&](int tile) {
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
    if (pattern.chunks.deduplicate) count_copies(tile);
    body(tile, storage.item_tile(tile), storage.column_tile(0, tile), storage.column_tile(1, tile));
  }
  cp_async_wait<0>();
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
  over_pairs<role, N>(rows, columns, [&](int n, int e, const auto&, const auto& key) { scores[n][e] *= key.factor; });
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

// ------------------------------------------------------------------------------------------------------------ forward

template <class T, int D>
__global__ void __launch_bounds__(Shape<T, D, false>::threads, 2)
    attention_forward(const LONGSPAN_GRID_CONSTANT Problem<T> problem) {
  using W = Wide<T>;
  using Sizes = Shape<T, D, false>;
  constexpr int N = Sizes::columns;
  LONGSPAN_SHARED(shared);
  Carver carver(shared);
  const Storage<T, D, false, Role::queries> storage(carver);
  const Pattern& pattern = problem.pattern;
  Work work;
  if (!pattern.start<Role::queries>(work, blockIdx.x)) return;  // the whole block leaves

  const int first_row = 16 * warp_id();
  W sums[D / 8][4], maximum[2], total[2];
#pragma unroll
  for (int n = 0; n < D / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) sums[n][e] = 0;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    maximum[r] = minus_infinity<W>(), total[r] = 0;
    const int row = first_row + tile_row(r);
    if (!problem.resume || row >= work.rows) continue;
    const int token = pattern.row<Role::queries>(work, row).token;
    const W lse = problem.lse[pattern.at(work, token)];
    if (lse == minus_infinity<W>()) continue;
    maximum[r] = lse * kLog2e<W>, total[r] = lane_id() % 4 == 0;  // the four lanes of a row are summed in the end
    const W* from = problem.running.at(work, token);
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        if (sum_column<T>(n, e) < problem.D) sums[n][2 * r + e] = from[sum_column<T>(n, e)];
  }

  walk<Role::queries, false>(
      problem, work, storage, problem.query, problem.query, problem.key, problem.value,
      [&](int tile, const Key<T>* items, const T* keys, const T* values) {
        const Query<T> queries[2] = {storage.row_items[first_row + tile_row(0)], storage.row_items[first_row + tile_row(1)]};
        W scores[N / 8][4];
        multiply_rows<T, D, N>(scores, storage.rows[0] + first_row * kPitch<T, D>, keys);
        score_pairs<Role::queries, N>(problem, work, storage, tile, first_row, queries, items, scores);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          W highest = maximum[r];
#pragma unroll
          for (int n = 0; n < N / 8; ++n)
#pragma unroll
            for (int e = 2 * r; e < 2 * r + 2; ++e) highest = scores[n][e] > highest ? scores[n][e] : highest;
          highest = quad_max(highest);
          const W shift = highest == minus_infinity<W>() ? W(0) : highest, shrink = exp2_fast(maximum[r] - shift);
          maximum[r] = highest, total[r] *= shrink;
#pragma unroll
          for (int n = 0; n < N / 8; ++n)
#pragma unroll
            for (int e = 2 * r; e < 2 * r + 2; ++e) {
              scores[n][e] = exp2_fast(scores[n][e] - shift);
              total[r] += scores[n][e];
            }
#pragma unroll
          for (int n = 0; n < D / 8; ++n)
#pragma unroll
            for (int e = 2 * r; e < 2 * r + 2; ++e) sums[n][e] *= shrink;
        }
        if (problem.dropout_seed)
          over_pairs<Role::queries, N>(queries, items, [&](int n, int e, const Query<T>& query, const Key<T>& key) {
            scores[n][e] *= keep_of(problem, query, key.token);
          });
        add_columns<T, D, N>(sums, scores, values);
      });

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    total[r] = quad_sum(total[r]);
    const int row = first_row + tile_row(r);
    if (row >= work.rows) continue;
    const int token = storage.row_items[row].token;
    const bool alone = total[r] == 0;
    const W inverse = alone ? W(0) : W(1) / total[r];
    const T* own = problem.value.at(work, token);
    if (lane_id() % 4 == 0)
      problem.lse[pattern.at(work, token)] = alone ? minus_infinity<W>() : (maximum[r] + log2_fast(total[r])) / kLog2e<W>;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      const int column = sum_column<T>(n, 0);
      W a = sums[n][2 * r] * inverse, b = sums[n][2 * r + 1] * inverse;
      if (!problem.last) {
        store_pair<W>(problem.running.at(work, token), column, problem.D, false, a, b);
        continue;
      }
      if (alone && pattern.shared) {
        a = column < problem.D ? W(own[column]) : W(0), b = column + 1 < problem.D ? W(own[column + 1]) : W(0);
      }
      store_pair<T>(problem.out.at(work, token), column, problem.D, problem.aligned, a, b);
    }
  }
}

// ----------------------------------------------------------------------------------------------------------- backward

// p and ds of a tile: on entry products of rows and columns, `scores` of queries and keys, `gradients` of grad_out and
// values; on exit p keep and ds.
template <Role role, int N, class T, int D, class Row, class Column>
__device__ __forceinline__ void weigh(
    const Problem<T>& problem, const Work& work, const Storage<T, D, true, role>& storage, int tile, int first_row,
    const Column* columns, Wide<T> (&scores)[N / 8][4], Wide<T> (&gradients)[N / 8][4]) {
  using W = Wide<T>;
  const Row rows[2] = {storage.row_items[first_row + tile_row(0)], storage.row_items[first_row + tile_row(1)]};
  score_pairs<role, N>(problem, work, storage, tile, first_row, rows, columns, scores);
  over_pairs<role, N>(rows, columns, [&](int n, int e, const Query<T>& query, const Key<T>&) {
    scores[n][e] = scores[n][e] == minus_infinity<W>() ? W(0) : exp2_fast(scores[n][e] - query.lse);
  });
  if (!problem.dropout_seed) {
    over_pairs<role, N>(rows, columns, [&](int n, int e, const Query<T>& query, const Key<T>&) {
      gradients[n][e] = scores[n][e] * (gradients[n][e] - query.delta);
    });
  } else {
    over_pairs<role, N>(rows, columns, [&](int n, int e, const Query<T>& query, const Key<T>& key) {
      const W keep = keep_of(problem, query, key.token);
      gradients[n][e] = scores[n][e] * (gradients[n][e] * keep - query.delta);
      scores[n][e] *= keep;
    });
  }
}

template <class T, int D>
__global__ void __launch_bounds__(Shape<T, D, true>::threads, 2)
    attention_backward_queries(const LONGSPAN_GRID_CONSTANT Problem<T> problem) {
  using W = Wide<T>;
  constexpr int N = Shape<T, D, true>::columns, pitch = kPitch<T, D>;
  LONGSPAN_SHARED(shared);
  Carver carver(shared);
  const Storage<T, D, true, Role::queries> storage(carver);
  const Pattern& pattern = problem.pattern;
  Work work;
  if (!pattern.start<Role::queries>(work, blockIdx.x)) return;

  const int first_row = 16 * warp_id();
  W sums[D / 8][4];
#pragma unroll
  for (int n = 0; n < D / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) sums[n][e] = 0;

  walk<Role::queries, true>(
      problem, work, storage, problem.query, problem.grad_out, problem.key, problem.value,
      [&](int tile, const Key<T>* items, const T* keys, const T* values) {
        W scores[N / 8][4], gradients[N / 8][4];
        multiply_rows<T, D, N>(scores, storage.rows[0] + first_row * pitch, keys);
        multiply_rows<T, D, N>(gradients, storage.rows[1] + first_row * pitch, values);
        weigh<Role::queries, N, T, D, Query<T>>(problem, work, storage, tile, first_row, items, scores, gradients);
#pragma unroll
        for (int n = 0; n < N / 8; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) gradients[n][e] *= items[score_column(n, e)].factor;
        add_columns<T, D, N>(sums, gradients, keys);
      });

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = first_row + tile_row(r);
    if (row >= work.rows) continue;
    const int token = storage.row_items[row].token;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      const int column = sum_column<T>(n, 0);
      const W a = sums[n][2 * r] / kLog2e<W>, b = sums[n][2 * r + 1] / kLog2e<W>;  // factors are in units of log 2
      if (problem.query_sums.data)
        add_pair(problem.query_sums.at(work, token), column, problem.D, a, b);
      else
        store_pair<T>(problem.grad_query.at(work, token), column, problem.D, problem.aligned, a, b);
    }
  }
}

template <class T, int D>
__global__ void __launch_bounds__(Shape<T, D, true>::threads, 2)
    attention_backward_keys(const LONGSPAN_GRID_CONSTANT Problem<T> problem) {
  using W = Wide<T>;
  constexpr int N = Shape<T, D, true>::columns, pitch = kPitch<T, D>;
  LONGSPAN_SHARED(shared);
  Carver carver(shared);
  const Storage<T, D, true, Role::keys> storage(carver);
  const Pattern& pattern = problem.pattern;
  Work work;
  if (!pattern.start<Role::keys>(work, blockIdx.x)) return;

  const int first_row = 16 * warp_id();
  W key_sums[D / 8][4], value_sums[D / 8][4];
#pragma unroll
  for (int n = 0; n < D / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) key_sums[n][e] = value_sums[n][e] = 0;

  walk<Role::keys, true>(
      problem, work, storage, problem.key, problem.value, problem.query, problem.grad_out,
      [&](int tile, const Query<T>* items, const T* queries, const T* grad_out) {
        W scores[N / 8][4], gradients[N / 8][4];
        multiply_rows<T, D, N>(scores, storage.rows[0] + first_row * pitch, queries);
        multiply_rows<T, D, N>(gradients, storage.rows[1] + first_row * pitch, grad_out);
        weigh<Role::keys, N, T, D, Key<T>>(problem, work, storage, tile, first_row, items, scores, gradients);
        add_columns<T, D, N>(value_sums, scores, grad_out);
        add_columns<T, D, N>(key_sums, gradients, queries);
      });

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = first_row + tile_row(r);
    const Key<T> item = storage.row_items[row];
    const W factor = item.factor / kLog2e<W>;
    // Where queries are the keys: k = x f, f = 1 / |x|, and the gradient of x is f (grad_k - k (k . grad_k)).
    const T* own = storage.rows[0] + row * pitch;
    W along = 0;
    if (pattern.shared) {
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) along += W(own[sum_column<T>(n, e)]) * key_sums[n][2 * r + e];
      along = quad_sum(along) * factor * factor * factor;
    }
    const bool hidden = item.token < 0;  // by the key mask: it has gradients, zeros
    if (row >= work.rows || (hidden && problem.query_sums.data)) continue;
    const int token = hidden ? pattern.row_token(work, row) : item.token;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      const int column = sum_column<T>(n, 0);
      W a = hidden ? W(0) : key_sums[n][2 * r] * factor, b = hidden ? W(0) : key_sums[n][2 * r + 1] * factor;
      const W value_a = hidden ? W(0) : value_sums[n][2 * r], value_b = hidden ? W(0) : value_sums[n][2 * r + 1];
      if (pattern.shared) a -= W(own[column]) * along, b -= W(own[column + 1]) * along;
      if (problem.query_sums.data) {
        add_pair(problem.query_sums.at(work, token), column, problem.D, a, b);
        add_pair(problem.value_sums.at(work, token), column, problem.D, value_a, value_b);
      } else {
        store_pair<T>(problem.grad_key.at(work, token), column, problem.D, problem.aligned, a, b);
        store_pair<T>(problem.grad_value.at(work, token), column, problem.D, problem.aligned, value_a, value_b);
      }
    }
  }
}

}  // namespace longspan::cuda
