// One problem of attention with soft spans on the CPU, as its kernels see it, and the table of kernels of one
// instruction set. Blocks of 48 queries meet keys of a window; offsets are key place minus query place.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/dropout.h"
#include "cpu/banded.h"
#include "cpu/rows.h"

namespace longspan::cpu {

struct SpanProblem {
  int64_t B, H, T, S, D;
  int64_t max_span;
  double ramp, scale;
  bool zero_cache, bidirectional;
  const bool* key_mask = nullptr;  // [B, S] or none
  Dropout dropout;
  Rows query, key, value, out;
  void* lse;                                      // [B, H, T], float (double for double), as all that follows
  const void* span;                               // one for each head, or for each query
  int64_t span_batch, span_head, span_query;      // its strides
  const int64_t* reach;                           // [B, H, blocks]: keys that some query of a block looks at, one side
  Rows position;                                  // position keys as given, or none; see position_row
  int64_t position_heads = 0, position_rows = 0;  // heads: 1 or H
  const void* table = nullptr;                    // the same by offset, [heads][table_rows()][padded D]
  int64_t offset_begin = 0, offset_end = 0;       // offsets of the table
  Rows grad_out, grad_key, grad_value;            // backward only
  const void* grad_lse = nullptr;                 // [B, H, T] or none

  static constexpr int64_t slack = 16;  // rows past the last that kernels may read
  int64_t table_rows() const { return offset_end - offset_begin + slack; }
  // Position keys by absolute distance: offsets o and -o share a row.
  bool symmetric() const { return bidirectional && position_rows == max_span; }
  int64_t position_row(int64_t offset) const {
    if (!bidirectional) return -1 - offset;
    return symmetric() ? (offset < 0 ? -offset : offset) : max_span - 1 + offset;
  }
  int64_t blocks() const { return (T + kQueryBlock - 1) / kQueryBlock; }
  int64_t reach_of(int64_t batch, int64_t head, int64_t block) const {
    return reach[(batch * H + head) * blocks() + block];
  }
  // Keys that a block looks back and ahead on.
  int64_t left(int64_t reach) const { return bidirectional ? reach - 1 : reach; }
  int64_t right(int64_t reach) const { return bidirectional ? reach - 1 : -1; }
};

// Blocks of queries of one head, against all their keys.
struct SpanItem {
  int64_t batch, head;
  int64_t first_block, last_block;
};

// One query of one head, against all its keys.
struct SpanQuery {
  int64_t batch, head, query;
};

// Some keys of one head, against all blocks that see them. Gradients of keys and values are written; those of queries,
// spans and position keys are this item's share, for others to add up.
struct SpanBackwardItem {
  int64_t batch, head;
  int64_t keys_begin, keys_end;  // below 0: the zero cache
  int64_t first_block, last_block;
  int64_t offset_begin, offset_end;  // offsets that occur
  int64_t cost;
  void *grad_query, *grad_span, *grad_table;  // [queries][padded D], [queries], [offsets][padded D]

  int64_t queries() const { return (last_block - first_block) * kQueryBlock; }
  int64_t offsets() const { return offset_end - offset_begin; }
};

struct SpanKernels {
  int64_t lanes;  // rows of scratch are padded to whole vectors
  // Position keys: rows of any dtype to rows of the table.
  void (*stage)(const Rows& from, int64_t head, int64_t row, int64_t step, int64_t count, int64_t D, void* to);
  size_t (*forward_bytes)(const SpanProblem&, int64_t blocks);
  void (*forward)(const SpanProblem&, const SpanItem&, void* scratch);
  size_t (*query_bytes)(const SpanProblem&);
  void (*forward_query)(const SpanProblem&, const SpanQuery&, void* scratch);
  size_t (*backward_bytes)(const SpanProblem&);
  void (*backward)(const SpanProblem&, const SpanBackwardItem&, void* scratch);
};

constexpr int64_t kFewQueries = 4;  // so many are done one by one: a block of 48 would be mostly empty
constexpr int64_t kSpanKeys = 576;  // keys that are staged at a time: whole tiles of 96

// Compiled once per instruction set.
const SpanKernels& span_portable();
const SpanKernels& span_portable_f64();
const SpanKernels& span_avx2();
const SpanKernels& span_avx512();

}  // namespace longspan::cpu
