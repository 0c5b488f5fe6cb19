#include "cpu/span_tensors.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/tensors.h"

namespace longspan::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kTableChunk = 512;  // rows of the table that are worth a thread's while

const SpanKernels& kernels_for(const Tensor& query) {
  if (query.scalar_type() == ScalarType::Double) return span_portable_f64();
  switch (isa()) {
    case Isa::portable:
      return span_portable();
    case Isa::avx2:
      return span_avx2();
    default:
      return span_avx512();
  }
}

// Distances 0 .. floor(span + ramp), as ops/span.py span_reach counts them.
int64_t reach_of(double span, double ramp, int64_t max_span) {
  const double last = std::floor(span + ramp);
  if (!(last >= 0)) return 0;  // a span that is not a number closes the head, as in the reference
  return last < double(max_span - 1) ? int64_t(last) + 1 : max_span;
}

template <class T>
void find_reach_of(const SpanProblem& problem, int64_t* reach) {
  for (int64_t b = 0; b < problem.B; ++b)
    for (int64_t h = 0; h < problem.H; ++h) {
      const T* spans = static_cast<const T*>(problem.span) + b * problem.span_batch + h * problem.span_head;
      for (int64_t first = 0; first < problem.T; first += kQueryBlock) {
        const int64_t last = std::min(first + kQueryBlock, problem.T);
        int64_t most = reach_of(double(spans[first * problem.span_query]), problem.ramp, problem.max_span);
        for (int64_t t = first + 1; problem.span_query && t < last; ++t)
          most = std::max(most, reach_of(double(spans[t * problem.span_query]), problem.ramp, problem.max_span));
        *reach++ = most;
      }
    }
}

}  // namespace

SpanInputs::SpanInputs(
    const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& position_key, const Tensor& span,
    const OptionalTensor& key_mask, const OptionalTensor& dropout_seed, const SpanOptions& options)
    : kernels(kernels_for(query)),
      query_(with_rows(query)),
      key_(with_rows(key)),
      value_(with_rows(value)),
      position_key_(position_key.stride(2) == 1 ? position_key : torch::stable::contiguous(position_key)),
      span_(torch::stable::contiguous(span)) {
  problem.B = query.size(0), problem.H = query.size(1), problem.T = query.size(2), problem.D = query.size(3);
  problem.S = key.size(2);
  for (const Tensor* other : {&key, &value})
    STD_TORCH_CHECK(
        other->size(0) == problem.B && other->size(1) == problem.H && other->size(2) == problem.S &&
            other->size(3) == problem.D && other->scalar_type() == query.scalar_type(),
        "span_attention: keys and values of the queries' batch, heads, head size and dtype wanted");
  STD_TORCH_CHECK(problem.S >= problem.T, "span_attention: at least as many keys as queries wanted");
  STD_TORCH_CHECK(
      position_key.size(2) == problem.D && (position_key.size(0) == 1 || position_key.size(0) == problem.H),
      "span_attention: position_key [heads or 1, rows, head size] wanted");
  STD_TORCH_CHECK(span.scalar_type() == statistics_of(query), "span_attention: span in the statistics dtype wanted");
  problem.max_span = options.max_span, problem.ramp = options.ramp, problem.scale = options.scale;
  problem.zero_cache = options.zero_cache, problem.bidirectional = options.bidirectional;
  if (key_mask) {
    key_mask_ = torch::stable::contiguous(*key_mask);
    problem.key_mask = static_cast<const bool*>(key_mask_->data_ptr());
  }
  if (dropout_seed)
    problem.dropout = make_dropout(*static_cast<const int64_t*>(dropout_seed->data_ptr()), options.dropout_p);
  problem.query = rows_of(query_), problem.key = rows_of(key_), problem.value = rows_of(value_);
  problem.span = span_.data_ptr();
  const bool dynamic = span_.dim() == 3;
  problem.span_batch = dynamic ? problem.H * problem.T : 0, problem.span_head = dynamic ? problem.T : 1;
  problem.span_query = dynamic ? 1 : 0;
  problem.position_heads = position_key.size(0), problem.position_rows = position_key.size(1);
  problem.position = {
      position_key_.data_ptr(), dtype_of(position_key_), 0, position_key_.stride(0), position_key_.stride(1)};
  const int64_t two_sided = problem.bidirectional ? 2 * problem.max_span - 1 : problem.max_span;
  STD_TORCH_CHECK(
      problem.position_rows == 0 || problem.position_rows == problem.max_span || problem.position_rows == two_sided,
      "span_attention: a row of position_key for each distance wanted");
  find_reach();
}

void SpanInputs::find_reach() {
  reach_.resize(size_t(problem.B * problem.H * problem.blocks()));
  if (is_double())
    find_reach_of<double>(problem, reach_.data());
  else
    find_reach_of<float>(problem, reach_.data());
  problem.reach = reach_.data();
}

// Rows by ascending offset, as far as some head reaches, in the dtype of the sums and padded to whole vectors.
void SpanInputs::build_table() {
  const int64_t farthest = reach_.empty() ? 0 : *std::max_element(reach_.begin(), reach_.end());
  if (farthest == 0 || problem.position_rows == 0) return;
  problem.offset_begin = -problem.left(farthest), problem.offset_end = problem.right(farthest) + 1;
  const int64_t rows = problem.table_rows(), count = problem.offset_end - problem.offset_begin;
  table_ = torch::stable::new_empty(
      position_key_, {problem.position_heads, rows, width()}, is_double() ? ScalarType::Double : ScalarType::Float);
  char* base = static_cast<char*>(table_->data_ptr());
  problem.table = base;
  const int64_t row_bytes = width() * (is_double() ? 8 : 4), chunks = (count + kTableChunk - 1) / kTableChunk;
  run_items("span_attention", size_t(problem.position_heads * chunks), 64, [&](size_t i, void*) {
    const int64_t head = int64_t(i) / chunks, begin = problem.offset_begin + int64_t(i) % chunks * kTableChunk;
    const int64_t end = std::min(begin + kTableChunk, problem.offset_end);
    auto stage = [&](int64_t a, int64_t b) {  // offsets whose rows lie in one direction
      if (a >= b) return;
      char* to = base + (head * rows + a - problem.offset_begin) * row_bytes;
      const int64_t row = problem.position_row(a), step = b - a > 1 ? problem.position_row(a + 1) - row : 1;
      kernels.stage(problem.position, head, row, step, b - a, problem.D, to);
    };
    const int64_t turn = std::min(std::max<int64_t>(begin, 0), end);
    stage(begin, turn);
    stage(turn, end);
    if (end == problem.offset_end) std::fill_n(base + (head * rows + count) * row_bytes, problem.slack * row_bytes, 0);
  });
}

}  // namespace longspan::cpu
