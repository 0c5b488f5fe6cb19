// The kernels of attention with soft spans for one element type, by head size: included once by span_<type>.cu.
// Everybody else calls what cuda/span.h declares.
#pragma once
#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/span.h"
#include "cuda/span_backward.cuh"
#include "cuda/span_forward.cuh"
#include "cuda/span_positions.cuh"
#include "cuda/span_prepare.cuh"
#include "cuda/span_wide.cuh"

namespace longspan::cuda {
namespace {

template <class T, int D>
struct SpanKernels {
  static_assert(D <= kWidestTile);
  static constexpr int lag_rows = LagStorage<T, D>::Sizes::rows;

  static int shares(const SpanProblem<T>& problem) {
    using Sizes = typename SpanStorage<T, D, false, Role::queries>::Sizes;
    return best_shares<T>(problem, Role::queries, Sizes::rows, Sizes::columns);
  }
  static void forward(SpanProblem<T> problem, void* stream) {
    using S = SpanStorage<T, D, false, Role::queries>;
    if (const int64_t blocks = blocks_of(problem, Role::queries, S::Sizes::rows))
      LONGSPAN_LAUNCH((span_forward<T, D>), blocks, S::Sizes::threads, shared_memory_of<S>(), stream, problem);
  }
  static void backward(SpanProblem<T> problem, void* stream) {
    using Q = SpanStorage<T, D, true, Role::queries>;
    using K = SpanStorage<T, D, true, Role::keys>;
    if (const int64_t blocks = blocks_of(problem, Role::queries, Q::Sizes::rows))
      LONGSPAN_LAUNCH((span_backward_queries<T, D>), blocks, Q::Sizes::threads, shared_memory_of<Q>(), stream, problem);
    if (const int64_t blocks = blocks_of(problem, Role::keys, K::Sizes::rows))
      LONGSPAN_LAUNCH((span_backward_keys<T, D>), blocks, K::Sizes::threads, shared_memory_of<K>(), stream, problem);
  }
  static void backward_positions(SpanProblem<T> problem, int64_t blocks, void* stream) {
    using S = LagStorage<T, D>;
    LONGSPAN_LAUNCH((span_backward_positions<T, D>), blocks, S::Sizes::threads, shared_memory_of<S>(), stream, problem);
  }
};

template <class T>
struct WideSpanKernels {
  static constexpr int lag_rows = kWideRows, threads = 32 * kWideRows;

  static int shares(const SpanProblem<T>&) { return 1; }
  static void forward(SpanProblem<T> problem, void* stream) {
    const size_t memory = WideKernels<T>::memory(problem, 1);
    if (const int64_t blocks = blocks_of(problem, Role::queries, kWideRows))
      LONGSPAN_LAUNCH((wide_forward<T, SpanProblem<T>>), blocks, threads, memory, stream, problem);
  }
  static void backward(SpanProblem<T> problem, void* stream) {
    const size_t one = WideKernels<T>::memory(problem, 1), two = WideKernels<T>::memory(problem, 2);
    if (const int64_t blocks = blocks_of(problem, Role::queries, kWideRows))
      LONGSPAN_LAUNCH((wide_backward_queries<T, SpanProblem<T>>), blocks, threads, one, stream, problem);
    if (const int64_t blocks = blocks_of(problem, Role::keys, kWideRows))
      LONGSPAN_LAUNCH((wide_backward_keys<T, SpanProblem<T>>), blocks, threads, two, stream, problem);
  }
  static void backward_positions(SpanProblem<T> problem, int64_t blocks, void* stream) {
    const size_t memory = WideKernels<T>::memory(problem, 1);
    LONGSPAN_LAUNCH((wide_span_backward_positions<T>), blocks, threads, memory, stream, problem);
  }
};

// Head sizes that have tiles of their own; others are padded to the next.
#ifndef LONGSPAN_SPAN_HEAD_SIZES
#define LONGSPAN_SPAN_HEAD_SIZES 64, 128
#endif
template <class T>
constexpr auto span_head_sizes() {
  if constexpr (sizeof(T) == 8) return std::integer_sequence<int, 32>();
  if constexpr (sizeof(T) < 8) return std::integer_sequence<int, LONGSPAN_SPAN_HEAD_SIZES>();
}

// Calls body(the kernels) for the first of `sizes` that holds a head, or for the wide kernels.
template <class T, class Body, int... sizes>
void with_span_kernels(const SpanProblem<T>& problem, Body&& body, std::integer_sequence<int, sizes...>) {
  const bool found = ((problem.D <= sizes && (body(SpanKernels<T, sizes>()), true)) || ...);
  if (!found) body(WideSpanKernels<T>());
}
template <class T, class Body>
void with_span_kernels(const SpanProblem<T>& problem, Body&& body) {
  with_span_kernels(problem, body, span_head_sizes<T>());
}

template <class T>
int64_t lag_tiles(const SpanProblem<T>& problem) {
  int64_t tiles = 0;
  with_span_kernels(problem, [&](auto kernels) { tiles = (problem.lags() + kernels.lag_rows - 1) / kernels.lag_rows; });
  return tiles;
}

}  // namespace

template <class T>
void launch_span_forward(const SpanProblem<T>& problem, void* stream) {
  with_span_kernels(problem, [&](auto kernels) { kernels.forward(problem, stream); });
}

template <class T>
int span_shares_of(const SpanProblem<T>& problem) {
  int shares = 1;
  with_span_kernels(problem, [&](auto kernels) { shares = kernels.shares(problem); });
  return shares;
}

template <class T>
void launch_span_backward(const SpanProblem<T>& problem, void* stream) {
  with_span_kernels(problem, [&](auto kernels) { kernels.backward(problem, stream); });
}

template <class T>
int position_groups(const SpanProblem<T>& problem) {
  const int64_t tables = problem.tables(), pairs = int64_t(problem.pattern.B) * problem.pattern.H / tables;
  const int64_t blocks = lag_tiles(problem) * tables;
  return int(std::clamp<int64_t>((kEnoughBlocks + blocks - 1) / blocks, 1, std::max<int64_t>(1, pairs)));
}

template <class T>
void launch_position_gradients(const SpanProblem<T>& problem, T* grad_position, void* stream) {
  const int64_t blocks = lag_tiles(problem) * problem.groups * problem.tables();
  const int64_t numbers = int64_t(problem.tables()) * problem.position_rows * problem.D;
  STD_TORCH_CHECK(blocks < (int64_t(1) << 31), "span_attention on CUDA: too many positions for one launch");
  with_span_kernels(problem, [&](auto kernels) { kernels.backward_positions(problem, blocks, stream); });
  if (numbers) LONGSPAN_LAUNCH((fold_lags<T>), (numbers + 127) / 128, 128, 0, stream, problem, grad_position);
}

template <class T>
void launch_span_reaches(const SpanProblem<T>& problem, int* far, void* stream) {
  if (const int64_t heads = int64_t(problem.pattern.B) * problem.pattern.H)
    LONGSPAN_LAUNCH((span_reaches<T>), heads, 32, 0, stream, problem, far);
}

}  // namespace longspan::cuda
