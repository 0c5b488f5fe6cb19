// Gradients of longspan::span_attention on the CPU, in parallel over ranges of keys.
//
// An item owns its keys' gradients and adds to those of queries, spans and position keys in rows of its own; these are
// added up afterwards in a fixed order, so results do not depend on the threads. Items are done in waves, so that the
// rows never take more than a fixed amount of memory (or one item's).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <tuple>

#include "cpu/parallel.h"
#include "cpu/span_tensors.h"
#include "cpu/tensors.h"

namespace longspan::cpu {
namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kWaveBytes = int64_t(64) << 20;
constexpr int64_t kSumRows = 4 * kQueryBlock;  // rows that are added up at a time

struct KeyRange {
  int64_t batch, head, begin, end;
};

struct Work {
  std::vector<SpanBackwardItem> items;  // the longest first
  std::vector<KeyRange> unseen;         // keys that nobody sees
};

// Keys of one head cut into ranges: short ones, so that all threads have work, but not much shorter than the window, so
// that the rows of their own that items need stay a small multiple of the gradients.
void add_head(const SpanProblem& problem, int64_t batch, int64_t head, Work& work) {
  struct Reach {
    int64_t begin, end;
  };
  std::vector<Reach> blocks;
  int64_t widest = 0, low = INT64_MAX, high = INT64_MIN;
  for (int64_t index = 0; index < problem.blocks(); ++index) {
    const int64_t reach = problem.reach_of(batch, head, index), first = index * kQueryBlock;
    const int64_t place = first + problem.S - problem.T, count = std::min(kQueryBlock, problem.T - first);
    const int64_t begin = place - problem.left(reach), floor = problem.zero_cache ? begin : 0;
    Reach keys{std::max(begin, floor), std::min(place + count + problem.right(reach), problem.S)};
    keys.end = std::max(keys.begin, keys.end);
    blocks.push_back(keys);
    if (keys.begin == keys.end) continue;
    widest = std::max(widest, reach), low = std::min(low, keys.begin), high = std::max(high, keys.end);
  }
  const int64_t length = kSpanKeys * std::max<int64_t>(1, std::min(widest, problem.T) / (8 * kSpanKeys));
  int64_t done = 0;  // keys that some item owns or that are known to be unseen
  for (int64_t begin = low, end; begin < high; begin = end) {
    end = std::min((begin >= 0 ? begin / length + 1 : -((-begin - 1) / length)) * length, high);
    SpanBackwardItem item{};
    item.batch = batch, item.head = head, item.keys_begin = begin, item.keys_end = end;
    item.first_block = problem.blocks();
    for (int64_t index = 0; index < problem.blocks(); ++index) {
      const int64_t a = std::max(blocks[size_t(index)].begin, begin), b = std::min(blocks[size_t(index)].end, end);
      if (a >= b) continue;
      item.first_block = std::min(item.first_block, index), item.last_block = index + 1;
      item.cost += b - a + kQueryBlock;
    }
    if (item.first_block >= item.last_block) continue;
    if (problem.table) {
      const int64_t cached = problem.S - problem.T, first = item.first_block * kQueryBlock + cached;
      const int64_t last = std::min(item.last_block * kQueryBlock, problem.T) + cached - 1;
      item.offset_begin = std::max(begin - last, -problem.left(widest));
      item.offset_end = std::max(std::min(end - first, problem.right(widest) + 1), item.offset_begin);
    }
    if (end > 0) {
      if (done < begin) work.unseen.push_back({batch, head, done, begin});
      done = end;
    }
    work.items.push_back(item);
  }
  if (done < problem.S) work.unseen.push_back({batch, head, done, problem.S});
}

template <class T>
class Backward {
 public:
  Backward(const SpanInputs& inputs, const Rows& grad_query, T* grad_span)
      : inputs_(inputs),
        problem_(inputs.problem),
        width_(inputs.width()),
        grad_query_(grad_query),
        grad_span_(grad_span),
        span_sums_(size_t(problem_.B * problem_.H * problem_.blocks()), 0.0),
        table_sums_(problem_.table ? size_t(problem_.position_heads * offsets() * width_) : 0, T(0)) {}

  void run(const Tensor& like) {
    Work work;
    for (int64_t b = 0; b < problem_.B; ++b)
      for (int64_t h = 0; h < problem_.H; ++h) add_head(problem_, b, h, work);
    std::stable_sort(
        work.items.begin(), work.items.end(), [](const auto& a, const auto& b) { return a.cost > b.cost; });
    run_items("span_attention_backward", work.unseen.size(), 64, [&](size_t i, void*) { clear(work.unseen[i]); });
    int64_t bytes = 0, most = 0;
    std::vector<size_t> ends;  // of waves
    for (size_t i = 0; i < work.items.size(); ++i) {
      if (bytes > 0 && bytes + bytes_of(work.items[i]) > kWaveBytes) ends.push_back(i), bytes = 0;
      bytes += bytes_of(work.items[i]), most = std::max(most, bytes);
    }
    ends.push_back(work.items.size());
    const Tensor rows = torch::stable::new_empty(like, {most / int64_t(sizeof(T))}, statistics_of(like));
    size_t begin = 0;
    for (const size_t end : ends) {
      wave(work.items.data() + begin, end - begin, static_cast<T*>(rows.data_ptr()));
      begin = end;
    }
    if (!problem_.span_query) sum_spans();
  }

  // Gradients by offset -> by row of position_key.
  void write_positions(T* to, int64_t rows) const {
    std::fill_n(to, problem_.position_heads * rows * problem_.D, T(0));
    for (int64_t head = 0; head < problem_.position_heads; ++head)
      for (int64_t offset = problem_.offset_begin; offset < problem_.offset_end; ++offset) {
        const T* from = table_sums_.data() + (head * offsets() + offset - problem_.offset_begin) * width_;
        T* row = to + (head * rows + problem_.position_row(offset)) * problem_.D;
        for (int64_t d = 0; d < problem_.D; ++d) row[d] += from[d];
      }
  }

 private:
  const SpanInputs& inputs_;
  const SpanProblem& problem_;
  const int64_t width_;
  const Rows grad_query_;          // zeros at the start, T
  T* grad_span_;                   // [H], or [B, H, T]: zeros at the start
  std::vector<double> span_sums_;  // [B, H, blocks], where a head has one span
  std::vector<T> table_sums_;

  int64_t offsets() const { return problem_.offset_end - problem_.offset_begin; }
  int64_t numbers_of(const SpanBackwardItem& item) const {
    return whole(item.queries() * width_) + whole(item.queries()) + whole(item.offsets() * width_);
  }
  int64_t bytes_of(const SpanBackwardItem& item) const { return numbers_of(item) * int64_t(sizeof(T)); }
  static int64_t whole(int64_t numbers) { return (numbers + 15) / 16 * 16; }  // items share no cache line

  void clear(const KeyRange& keys) const {
    for (const Rows* rows : {&problem_.grad_key, &problem_.grad_value}) {
      const int64_t size = rows->dtype == Dtype::f64 ? 8 : rows->dtype == Dtype::f32 ? 4 : 2;
      for (int64_t key = keys.begin; key < keys.end; ++key)
        std::memset(
            static_cast<char*>(rows->data) +
                (keys.batch * rows->batch + keys.head * rows->head + key * rows->row) * size,
            0, size_t(problem_.D * size));
    }
  }

  void wave(SpanBackwardItem* items, size_t count, T* rows) {
    for (size_t i = 0; i < count; ++i) {
      items[i].grad_query = rows, rows += whole(items[i].queries() * width_);
      items[i].grad_span = rows, rows += whole(items[i].queries());
      items[i].grad_table = rows, rows += whole(items[i].offsets() * width_);
    }
    run_items("span_attention_backward", count, inputs_.kernels.backward_bytes(problem_), [&](size_t i, void* scratch) {
      inputs_.kernels.backward(problem_, items[i], scratch);
    });
    add_queries(items, count);
    if (problem_.table) add_positions(items, count);
  }

  void add_queries(const SpanBackwardItem* items, size_t count) {
    std::vector<std::vector<const SpanBackwardItem*>> of_head(size_t(problem_.B * problem_.H));
    for (size_t i = 0; i < count; ++i)
      of_head[size_t(items[i].batch * problem_.H + items[i].head)].push_back(items + i);
    constexpr int64_t blocks_at_a_time = kSumRows / kQueryBlock;
    const int64_t chunks = (problem_.blocks() + blocks_at_a_time - 1) / blocks_at_a_time;
    run_items("span_attention_backward", of_head.size() * size_t(chunks), 64, [&](size_t i, void*) {
      const int64_t first = int64_t(i) % chunks * blocks_at_a_time;
      for (const SpanBackwardItem* item : of_head[i / size_t(chunks)])
        for (int64_t block = std::max(first, item->first_block);
             block < std::min(first + blocks_at_a_time, item->last_block); ++block)
          add_block(*item, block);
    });
  }

  void add_block(const SpanBackwardItem& item, int64_t block) {
    const int64_t at = (block - item.first_block) * kQueryBlock, first = block * kQueryBlock;
    const int64_t head = item.batch * problem_.H + item.head;
    double sum = 0;
    for (int64_t i = 0; i < std::min(kQueryBlock, problem_.T - first); ++i) {
      const T* from = static_cast<const T*>(item.grad_query) + (at + i) * width_;
      T* to = static_cast<T*>(grad_query_.data) + item.batch * grad_query_.batch + item.head * grad_query_.head +
              (first + i) * grad_query_.row;
      for (int64_t d = 0; d < problem_.D; ++d) to[d] += from[d];
      const T slope = static_cast<const T*>(item.grad_span)[at + i];
      if (problem_.span_query) grad_span_[head * problem_.T + first + i] += slope;
      sum += double(slope);
    }
    span_sums_[size_t(head * problem_.blocks() + block)] += sum;
  }

  void sum_spans() {
    for (int64_t h = 0; h < problem_.H; ++h) {
      double sum = 0;
      for (int64_t b = 0; b < problem_.B; ++b)
        for (int64_t block = 0; block < problem_.blocks(); ++block)
          sum += span_sums_[size_t((b * problem_.H + h) * problem_.blocks() + block)];
      grad_span_[h] = T(sum);
    }
  }

  void add_positions(const SpanBackwardItem* items, size_t count) {
    const int64_t chunks = (offsets() + kSumRows - 1) / kSumRows;
    run_items("span_attention_backward", size_t(problem_.position_heads * chunks), 64, [&](size_t i, void*) {
      const int64_t head = int64_t(i) / chunks, begin = problem_.offset_begin + int64_t(i) % chunks * kSumRows;
      const int64_t end = std::min(begin + kSumRows, problem_.offset_end);
      T* sums = table_sums_.data() + head * offsets() * width_;
      for (size_t j = 0; j < count; ++j) {
        const SpanBackwardItem& item = items[j];
        if (problem_.position_heads > 1 && item.head != head) continue;
        const int64_t a = std::max(begin, item.offset_begin), b = std::min(end, item.offset_end);
        if (a >= b) continue;
        const T* from = static_cast<const T*>(item.grad_table) + (a - item.offset_begin) * width_;
        T* to = sums + (a - problem_.offset_begin) * width_;
        for (int64_t n = 0; n < (b - a) * width_; ++n) to[n] += from[n];
      }
    });
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    Tensor grad_out, OptionalTensor grad_lse, Tensor query, Tensor key, Tensor value, Tensor position_key, Tensor span,
    Tensor out, Tensor lse, OptionalTensor key_mask, OptionalTensor dropout_seed, double scale, double dropout_p,
    int64_t max_span, double ramp, bool zero_cache, bool bidirectional) {
  Tensor grads[5] = {
      torch::stable::empty_like(query), torch::stable::empty_like(key), torch::stable::empty_like(value),
      torch::stable::empty_like(position_key), torch::stable::empty_like(span)};
  SpanInputs inputs(
      query, key, value, position_key, span, key_mask, dropout_seed,
      {scale, dropout_p, max_span, ramp, zero_cache, bidirectional});
  inputs.build_table();
  SpanProblem& problem = inputs.problem;
  out = with_rows(out), grad_out = with_rows(grad_out), lse = torch::stable::contiguous(lse);
  problem.out = rows_of(out), problem.grad_out = rows_of(grad_out), problem.lse = lse.data_ptr();
  if (grad_lse) {
    grad_lse = torch::stable::contiguous(*grad_lse);
    problem.grad_lse = grad_lse->data_ptr();
  }
  const auto wide = statistics_of(query);
  // Sums in the statistics dtype, in place where that is the gradient's own.
  auto in_place = [&](const Tensor& grad) { return grad.scalar_type() == wide && grad.stride(3) == 1; };
  Tensor grad_query = in_place(grads[0])
                          ? torch::stable::zero_(grads[0])
                          : torch::stable::new_zeros(grads[0], {problem.B, problem.H, problem.T, problem.D}, wide);
  Tensor grad_key = with_rows(grads[1]), grad_value = with_rows(grads[2]);
  problem.grad_key = rows_of(grad_key), problem.grad_value = rows_of(grad_value);
  const int64_t rows = position_key.size(1);
  Tensor grad_position = grads[3];
  if (grad_position.scalar_type() != wide || !grad_position.is_contiguous())
    grad_position = torch::stable::new_empty(position_key, {position_key.size(0), rows, problem.D}, wide);
  std::vector<int64_t> span_shape = {problem.H};
  if (span.dim() == 3) span_shape = {problem.B, problem.H, problem.T};
  Tensor grad_span = torch::stable::new_zeros(span, span_shape, wide);

  auto run = [&](auto number) {
    using T = decltype(number);
    Backward<T> pass(inputs, rows_of(grad_query), static_cast<T*>(grad_span.data_ptr()));
    pass.run(query);
    if (problem.table)
      pass.write_positions(static_cast<T*>(grad_position.data_ptr()), rows);
    else
      torch::stable::zero_(grad_position);
  };
  inputs.is_double() ? run(double()) : run(float());

  const Tensor computed[5] = {grad_query, grad_key, grad_value, grad_position, grad_span};
  for (int i = 0; i < 5; ++i)
    if (computed[i].data_ptr() != grads[i].data_ptr()) torch::stable::copy_(grads[i], computed[i]);
  return {grads[0], grads[1], grads[2], grads[3], grads[4]};
}

}  // namespace
}  // namespace longspan::cpu

STABLE_TORCH_LIBRARY_IMPL(longspan, CPU, m) { m.impl("span_attention_backward", TORCH_BOX(&longspan::cpu::backward)); }
