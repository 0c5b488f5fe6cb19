// Attention on a GPU, for host code: fill in a Problem and launch. Compiled once for each element type.
#pragma once
#include "cuda/problem.cuh"

namespace longspan::cuda {

template <class T>
void launch_forward(const Problem<T>& problem, void* stream);

template <class T>
void launch_backward(const Problem<T>& problem, void* stream);

// factor [B, H, T]: one over the length of each key.
template <class T>
void launch_key_factors(const Problem<T>& problem, Wide<T>* factor, void* stream);

// delta [B, H, T]; where the pattern is shared also the gradients, in value_sums, of tokens that took their own value.
template <class T>
void launch_query_deltas(
    const Problem<T>& problem, const Rows<const T>& out, const Wide<T>* grad_lse, Wide<T>* delta, void* stream);

// Instantiates them.
#define LONGSPAN_LAUNCHERS(T)                                              \
  template void launch_forward<T>(const Problem<T>&, void*);               \
  template void launch_backward<T>(const Problem<T>&, void*);              \
  template void launch_key_factors<T>(const Problem<T>&, Wide<T>*, void*); \
  template void launch_query_deltas<T>(const Problem<T>&, const Rows<const T>&, const Wide<T>*, Wide<T>*, void*);

}  // namespace longspan::cuda
