// The kernels of attention for one element type, by head size: included once by attention_<type>.cu, so that the types
// compile side by side. Everybody else calls what cuda/attention.h declares.
#pragma once
#include <algorithm>
#include <utility>

#include "cuda/attention.h"
#include "cuda/backward.cuh"
#include "cuda/forward.cuh"
#include "cuda/prepare.cuh"
#include "cuda/wide.cuh"

namespace longspan::cuda {
namespace {

template <class Storage, class... Arguments>
size_t shared_memory_of(Arguments... arguments) {
  Carver carver(nullptr);
  Storage storage(carver, arguments...);
  return carver.used();
}

size_t wide_memory(int head_size, int rows_of_sums, size_t element) {
  Carver carver(nullptr);
  for (int i = 0; i < rows_of_sums; ++i) carver.take<unsigned char>(size_t(kWideRows) * head_size * element);
  return carver.used();
}

int64_t cut(int64_t length, int64_t size) { return (length + size - 1) / size; }

// Blocks of a launch: sets the tiles of the pattern.
template <class T>
int64_t blocks_of(Problem<T>& problem, Role role, int rows_per_tile) {
  Pattern& pattern = problem.pattern;
  pattern.rows_per_tile = rows_per_tile;
  if (pattern.B == 0) return 0;
  const int64_t rows = role == Role::queries ? pattern.T : pattern.S;
  int64_t tiles = 0;
  if (pattern.chunked) {
    tiles = int64_t(pattern.num_chunks()) * cut(pattern.chunks.chunk, rows_per_tile);
  } else {
    for (int head = 0; head < pattern.heads; ++head) {
      const int64_t step = pattern.reaches.far ? 1 : std::min(pattern.bands.step[head], std::max(1, pattern.S));
      tiles = std::max(tiles, step * cut(cut(rows, step), rows_per_tile));
    }
  }
  const int64_t blocks = tiles * pattern.heads * pattern.B * pattern.shares;
  STD_TORCH_CHECK(blocks < (int64_t(1) << 31), "attention on CUDA: too many tiles for one launch (", blocks, ")");
  pattern.tiles = int(tiles);
  return blocks;
}

constexpr int64_t kEnoughBlocks = 512;  // to fill any GPU
constexpr int64_t kLeastTiles = 4;      // of columns, that are worth a block
constexpr int64_t kMostShares = 64;     // that one warp joins

// Into how many shares columns are cut where tiles of rows are too few to fill a GPU. The same on every GPU: results do
// not depend on which it is.
template <class T>
int best_shares(Problem<T> problem, Role role, int rows_per_tile, int columns_per_tile) {
  const Pattern& pattern = problem.pattern;
  const int64_t blocks = blocks_of(problem, role, rows_per_tile);
  if (blocks == 0 || pattern.chunked) return 1;
  int64_t widest = 0;  // columns that a tile of rows meets
  for (int head = 0; head < pattern.heads; ++head) {
    if (pattern.reaches.far) {
      widest = rows_per_tile + pattern.reaches.most * (pattern.reaches.both_ways ? 2 : 1);
    } else {
      const int64_t all = cut(role == Role::queries ? pattern.S : pattern.T, pattern.bands.step[head]);
      const int64_t seen = int64_t(rows_per_tile) + pattern.bands.left[head] + pattern.bands.right[head];
      widest = std::max(widest, std::min(all, seen));
    }
  }
  const int64_t shares = std::min(kEnoughBlocks / blocks, widest / (kLeastTiles * columns_per_tile));
  return int(std::clamp<int64_t>(shares, 1, kMostShares));
}

template <class T, int D>
struct Kernels {
  static_assert(D <= kWidestTile);
  static int shares(const Problem<T>& problem, Role role, bool backward) {
    using Forward = Shape<T, D, false>;
    using Backward = Shape<T, D, true>;
    return backward ? best_shares(problem, role, Backward::rows, Backward::columns)
                    : best_shares(problem, role, Forward::rows, Forward::columns);
  }
  static void forward(Problem<T> problem, void* stream) {
    const int64_t blocks = blocks_of(problem, Role::queries, Shape<T, D, false>::rows);
    if (blocks)
      LONGSPAN_LAUNCH(
          (attention_forward<T, D>), blocks, (Shape<T, D, false>::threads),
          (shared_memory_of<Storage<T, D, false, Role::queries>>(problem.pattern.chunks.deduplicate)), stream, problem);
  }
  static void backward(Problem<T> problem, Role role, void* stream) {
    constexpr int threads = Shape<T, D, true>::threads;
    const int64_t blocks = blocks_of(problem, role, Shape<T, D, true>::rows);
    if (blocks == 0) return;
    if (role == Role::queries) {
      const size_t shared = shared_memory_of<Storage<T, D, true, Role::queries>>(problem.pattern.chunks.deduplicate);
      LONGSPAN_LAUNCH((attention_backward_queries<T, D>), blocks, threads, shared, stream, problem);
    } else {
      const size_t shared = shared_memory_of<Storage<T, D, true, Role::keys>>(problem.pattern.chunks.deduplicate);
      LONGSPAN_LAUNCH((attention_backward_keys<T, D>), blocks, threads, shared, stream, problem);
    }
  }
};

template <class T>
struct WideKernels {
  static int shares(const Problem<T>&, Role, bool) { return 1; }
  static size_t memory(const Problem<T>& problem, int sums) {
    const size_t shared = wide_memory(problem.D, sums, sizeof(Wide<T>));
    STD_TORCH_CHECK(shared <= kMostSharedMemory, "attention on CUDA: head size ", problem.D, " is too large");
    return shared;
  }
  static void forward(Problem<T> problem, void* stream) {
    if (const int64_t blocks = blocks_of(problem, Role::queries, kWideRows))
      LONGSPAN_LAUNCH((wide_forward<T, Problem<T>>), blocks, 32 * kWideRows, memory(problem, 1), stream, problem);
  }
  static void backward(Problem<T> problem, Role role, void* stream) {
    constexpr int threads = 32 * kWideRows;
    const int64_t blocks = blocks_of(problem, role, kWideRows);
    if (blocks == 0) return;
    if (role == Role::queries)
      LONGSPAN_LAUNCH((wide_backward_queries<T, Problem<T>>), blocks, threads, memory(problem, 1), stream, problem);
    else
      LONGSPAN_LAUNCH((wide_backward_keys<T, Problem<T>>), blocks, threads, memory(problem, 2), stream, problem);
  }
};

// Head sizes that have tiles of their own; others are padded to the next. Fewer of them compile faster, so only the
// 16-bit types have them all.
#ifdef LONGSPAN_HEAD_SIZES
#define LONGSPAN_FLOAT_HEAD_SIZES LONGSPAN_HEAD_SIZES
#else
#define LONGSPAN_HEAD_SIZES 32, 64, 80, 96, 128
#define LONGSPAN_FLOAT_HEAD_SIZES 64, 128
#endif
template <class T>
constexpr auto head_sizes() {
  if constexpr (sizeof(T) == 2) return std::integer_sequence<int, LONGSPAN_HEAD_SIZES>();
  if constexpr (sizeof(T) == 4) return std::integer_sequence<int, LONGSPAN_FLOAT_HEAD_SIZES>();
  if constexpr (sizeof(T) == 8) return std::integer_sequence<int, 64>();
}

// Calls body(the kernels) for the first of `sizes` that holds a head, or for the wide kernels.
template <class T, class Body, int... sizes>
void with_kernels(const Problem<T>& problem, Body&& body, std::integer_sequence<int, sizes...>) {
  const bool found = ((problem.D <= sizes && (body(Kernels<T, sizes>()), true)) || ...);
  if (!found) body(WideKernels<T>());
}

int64_t prepare_blocks(const Pattern& pattern, int tokens) {
  return cut(int64_t(pattern.B) * pattern.heads * tokens, kRowsOfWarps);
}

}  // namespace

template <class T>
void launch_forward(const Problem<T>& problem, void* stream) {
  with_kernels(problem, [&](auto kernels) { kernels.forward(problem, stream); }, head_sizes<T>());
}

template <class T>
void launch_backward(const Problem<T>& problem, Role role, void* stream) {
  with_kernels(problem, [&](auto kernels) { kernels.backward(problem, role, stream); }, head_sizes<T>());
}

template <class T>
int shares_of(const Problem<T>& problem, Role role, bool backward) {
  int shares = 1;
  with_kernels(problem, [&](auto kernels) { shares = kernels.shares(problem, role, backward); }, head_sizes<T>());
  return shares;
}

template <class T>
void launch_merge_shares(const Problem<T>& problem, const Problem<T>& parts, void* stream) {
  const Rows<const Wide<T>> sums = {parts.running.data, parts.running.batch, parts.running.head, parts.running.row};
  const Wide<T>* lses = parts.lse;
  if (const int64_t blocks = prepare_blocks(problem.pattern, problem.pattern.T))
    LONGSPAN_LAUNCH((merge_shares<T>), blocks, 32 * kRowsOfWarps, 0, stream, problem, sums, lses, parts.pattern.shares);
}

template <class T>
void launch_sum_shares(
    const Problem<T>& parts, int tokens, const Rows<const Wide<T>>& sums, const Rows<T>& to, void* stream) {
  if (const int64_t blocks = prepare_blocks(parts.pattern, tokens))
    LONGSPAN_LAUNCH(
        (sum_shares<T>), blocks, 32 * kRowsOfWarps, 0, stream, parts, tokens, sums, parts.pattern.shares, to);
}

template <class T>
void launch_key_factors(const Problem<T>& problem, Wide<T>* factor, void* stream) {
  if (const int64_t blocks = prepare_blocks(problem.pattern, problem.pattern.T))
    LONGSPAN_LAUNCH((key_factors<T>), blocks, 32 * kRowsOfWarps, 0, stream, problem, factor);
}

template <class T>
void launch_query_deltas(
    const Problem<T>& problem, const Rows<const T>& out, const Wide<T>* grad_lse, Wide<T>* delta, void* stream) {
  if (const int64_t blocks = prepare_blocks(problem.pattern, problem.pattern.T))
    LONGSPAN_LAUNCH((query_deltas<T>), blocks, 32 * kRowsOfWarps, 0, stream, problem, out, grad_lse, delta);
}

}  // namespace longspan::cuda
