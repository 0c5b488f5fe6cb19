// Attention on a GPU, for host code: fill in a Problem and launch. Compiled once for each element type.
#pragma once
#include "cuda/problem.cuh"

namespace longspan::cuda {

template <class T>
void launch_forward(const Problem<T>& problem, void* stream);

// Gradients of queries, or of keys and values.
template <class T>
void launch_backward(const Problem<T>& problem, Role role, void* stream);

// Into how many shares (pattern.shares) the columns of each tile are best cut: 1 where there are tiles enough.
template <class T>
int shares_of(const Problem<T>& problem, Role role, bool backward);

// The results of `problem` from those of its shares.
template <class T>
void launch_merge_shares(const Problem<T>& problem, const Problem<T>& parts, void* stream);

// `to` [B, H, tokens, D] from the sums [shares B, H, tokens, D] of its shares.
template <class T>
void launch_sum_shares(
    const Problem<T>& parts, int tokens, const Rows<const Wide<T>>& sums, const Rows<T>& to, void* stream);

// factor [B, H, T]: one over the length of each key.
template <class T>
void launch_key_factors(const Problem<T>& problem, Wide<T>* factor, void* stream);

// delta [B, H, T]; where the pattern is shared also the gradients, in value_sums, of tokens that took their own value.
template <class T>
void launch_query_deltas(
    const Problem<T>& problem, const Rows<const T>& out, const Wide<T>* grad_lse, Wide<T>* delta, void* stream);

// Instantiates them.
#define LONGSPAN_LAUNCHERS(T)                                                                                    \
  template void launch_forward<T>(const Problem<T>&, void*);                                                     \
  template void launch_backward<T>(const Problem<T>&, Role, void*);                                              \
  template int shares_of<T>(const Problem<T>&, Role, bool);                                                      \
  template void launch_merge_shares<T>(const Problem<T>&, const Problem<T>&, void*);                             \
  template void launch_sum_shares<T>(const Problem<T>&, int, const Rows<const Wide<T>>&, const Rows<T>&, void*); \
  template void launch_key_factors<T>(const Problem<T>&, Wide<T>*, void*);                                       \
  template void launch_query_deltas<T>(const Problem<T>&, const Rows<const T>&, const Wide<T>*, Wide<T>*, void*);

}  // namespace longspan::cuda
