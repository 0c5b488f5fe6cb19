// Attention with soft spans on a GPU, for host code: fill in a SpanProblem and launch. Compiled once for each element
// type.
#pragma once
#include "cuda/span.cuh"

namespace longspan::cuda {

template <class T>
void launch_span_forward(const SpanProblem<T>& problem, void* stream);

// As shares_of, forward.
template <class T>
int span_shares_of(const SpanProblem<T>& problem);

// Gradients of queries, keys, values and spans.
template <class T>
void launch_span_backward(const SpanProblem<T>& problem, void* stream);

// How many groups of heads have sums of their own, position_sums.
template <class T>
int position_groups(const SpanProblem<T>& problem);

// Gradients of positions, for problems that have some.
template <class T>
void launch_position_gradients(const SpanProblem<T>& problem, T* grad_position, void* stream);

// far [B, H]: how many keys each head looks at.
template <class T>
void launch_span_reaches(const SpanProblem<T>& problem, int* far, void* stream);

// Instantiates them.
#define LONGSPAN_SPAN_LAUNCHERS(T)                                              \
  template void launch_span_forward<T>(const SpanProblem<T>&, void*);           \
  template int span_shares_of<T>(const SpanProblem<T>&);                        \
  template void launch_span_backward<T>(const SpanProblem<T>&, void*);          \
  template int position_groups<T>(const SpanProblem<T>&);                       \
  template void launch_position_gradients<T>(const SpanProblem<T>&, T*, void*); \
  template void launch_span_reaches<T>(const SpanProblem<T>&, int*, void*);

}  // namespace longspan::cuda
