// One banded-attention problem on the CPU, as its kernels see it, and the table of kernels of one instruction set.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/dropout.h"
#include "cpu/rows.h"
#include "cpu/scratch.h"

namespace longspan::cpu {

struct BandedProblem {
  int64_t B, H, T, S, D;
  const int64_t *left, *right, *dilation;  // [H], in steps of the dilation; left and right at most S + T
  const bool* key_mask = nullptr;          // [B, S] or none
  double scale;
  Dropout dropout;
  Rows query, key, value, out;
  void* lse;  // [B, H, T], float (double for double)
  // Backward only. grad_key and grad_value are sums: zero at the start, float (double for double).
  Rows grad_out, grad_query, grad_key, grad_value;
  const void* grad_lse = nullptr;  // [B, H, T] or none
};

// The queries begin .. end of one chain: the positions of one residue class modulo the dilation, of one head. A dilated
// band is a plain band over each chain; all indices below are places in the chain.
struct BandedItem {
  int64_t batch, head, residue;
  int64_t begin, end;  // queries of the chain
};

struct BandedChain {
  int64_t step, first_query, num_queries, num_keys, shift;  // query i stands at place i + shift

  BandedChain(const BandedProblem& problem, int64_t head, int64_t residue) {
    const int64_t cached = problem.S - problem.T;
    step = problem.dilation[head] < problem.S ? problem.dilation[head] : (problem.S > 0 ? problem.S : 1);
    first_query = ((residue - cached) % step + step) % step;
    num_queries = count(first_query, problem.T);
    num_keys = count(residue, problem.S);
    shift = (first_query + cached) / step;
  }

 private:
  int64_t count(int64_t first, int64_t length) const { return length > first ? (length - first + step - 1) / step : 0; }
};

// An item with its chain and the keys it can reach: what every kernel begins with.
struct BandedRun {
  const BandedProblem& problem;
  const BandedItem& item;
  const BandedChain chain;
  const int64_t left, right;
  const int64_t keys_begin, keys_end;  // places of the chain

  // With key_alignment, keys_begin is a multiple of it: where runs are cut then changes no grouping of keys.
  BandedRun(const BandedProblem& problem, const BandedItem& item, int64_t key_alignment = 1)
      : problem(problem),
        item(item),
        chain(problem, item.head, item.residue),
        left(problem.left[item.head]),
        right(problem.right[item.head]),
        keys_begin(clamp(item.begin + chain.shift - left) / key_alignment * key_alignment),
        keys_end(at_least(clamp(item.end + chain.shift + right), keys_begin)) {}

  int64_t num_keys() const { return keys_end - keys_begin; }
  int64_t clamp(int64_t place) const { return place < 0 ? 0 : place < chain.num_keys ? place : chain.num_keys; }
  int64_t key_token(int64_t place) const { return item.residue + place * chain.step; }
  int64_t query_token(int64_t index) const { return chain.first_query + index * chain.step; }
  int64_t statistics_at(int64_t index) const {
    return (item.batch * problem.H + item.head) * problem.T + query_token(index);
  }
  bool hidden(int64_t place) const {  // by the key mask, which must be there
    return !problem.key_mask[item.batch * problem.S + key_token(place)];
  }

 private:
  static int64_t at_least(int64_t x, int64_t low) { return x < low ? low : x; }
};

struct BandedKernels {
  size_t (*scratch_bytes)(const BandedProblem&, int64_t num_keys, bool backward);  // for items of up to num_keys keys
  void (*forward)(const BandedProblem&, const BandedItem&, void* scratch);
  void (*backward)(const BandedProblem&, const BandedItem&, void* scratch);
};

constexpr int64_t kQueryBlock = 48;  // queries of one block: a multiple of every register tile
constexpr int64_t kRunQuantum = 96;  // runs begin at multiples of it: whole blocks of 48, whole panels of 32

// Compiled once per instruction set.
const BandedKernels& banded_portable();
const BandedKernels& banded_portable_f64();
const BandedKernels& banded_avx2();
const BandedKernels& banded_avx512();
// Forward only, of bfloat16 tensors, without dropout; the others take every dtype but double.
const BandedKernels& banded_bf16_avx512();
const BandedKernels& banded_bf16_amx();

}  // namespace longspan::cpu
