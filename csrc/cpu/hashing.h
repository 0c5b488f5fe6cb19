// Angular hashing of some tokens of one head, as its kernels see it.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu/rows.h"

namespace longspan::cpu {

struct HashingProblem {
  int64_t B, H, R, T, D;
  Rows query_key;
  const void* rotations;         // [H, D, R, columns] and kHashingSlack numbers more; float (double for double)
  int64_t columns, num_factors;  // columns of one round: half the sum of the factors
  const int64_t* factors;
  const bool* key_mask = nullptr;  // [B, T] or none
  int64_t masked_bucket;
  int64_t* buckets;  // [B, H, R, T]
};

struct HashingItem {
  int64_t batch, head, begin, end;  // tokens
};

struct HashingKernel {
  size_t (*scratch_bytes)(const HashingProblem&);
  void (*run)(const HashingProblem&, const HashingItem&, void* scratch);
};

constexpr int64_t kHashingSlack = 32;  // numbers that a register tile may read past the last rotation

// Compiled once per instruction set.
const HashingKernel& hashing_portable();
const HashingKernel& hashing_portable_f64();
const HashingKernel& hashing_avx2();
const HashingKernel& hashing_avx512();

}  // namespace longspan::cpu
