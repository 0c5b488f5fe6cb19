// Multi-dimensional attention of some sequences and features, as its kernels see it.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu/rows.h"

namespace longspan::cpu {

struct MultidimProblem {
  int64_t B, L, D;
  bool earlier, later, own;  // what a query sees
  double scale;
  Rows dependent, head, value;     // [B, L, D], as heads of which there is one
  const void* bias;                // [D], float (double for double)
  const bool* key_mask = nullptr;  // [B, L] or none
  Rows out, denominator;           // written by the forward pass, read by the backward pass
  Rows grad_out, grad_denominator, grad_dependent, grad_head, grad_value;  // grad_denominator may have no data
  void* grad_bias = nullptr;  // [groups, D], of the sequences of a group; float (double for double)
};

struct MultidimItem {
  int64_t begin, end;  // sequences
  int64_t group;
  int64_t feature, features;
};

struct MultidimKernels {
  size_t (*scratch_bytes)(const MultidimProblem&, int64_t features);
  void (*forward)(const MultidimProblem&, const MultidimItem&, void* scratch);
  void (*backward)(const MultidimProblem&, const MultidimItem&, void* scratch);
};

// Compiled once per instruction set.
const MultidimKernels& multidim_portable();
const MultidimKernels& multidim_portable_f64();
const MultidimKernels& multidim_avx2();
const MultidimKernels& multidim_avx512();

}  // namespace longspan::cpu
