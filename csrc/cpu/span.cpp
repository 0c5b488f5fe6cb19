// longspan::span_attention on the CPU, as models/longspan/ops/span.py defines it, in parallel over blocks of queries.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>

#include "cpu/parallel.h"
#include "cpu/span_tensors.h"
#include "cpu/tensors.h"

namespace longspan::cpu {
namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kBlocksOfItem = 8;  // blocks that share staged keys, at most

struct Costed {
  SpanItem item;
  int64_t cost;
};

// Blocks of each head cut into items of about the same cost, the longest first. No result depends on where cuts are.
std::vector<Costed> items_of(const SpanProblem& problem) {
  auto cost = [&](int64_t b, int64_t h, int64_t block) { return problem.reach_of(b, h, block) + kQueryBlock; };
  int64_t total = 0;
  for (int64_t b = 0; b < problem.B; ++b)
    for (int64_t h = 0; h < problem.H; ++h)
      for (int64_t block = 0; block < problem.blocks(); ++block) total += cost(b, h, block);
  const int64_t fair = total / (4 * int64_t(torch::stable::get_num_threads())) + 1;
  std::vector<Costed> items;
  for (int64_t b = 0; b < problem.B; ++b)
    for (int64_t h = 0; h < problem.H; ++h)
      for (int64_t first = 0, last; first < problem.blocks(); first = last) {
        int64_t sum = 0;
        for (last = first; last < problem.blocks() && last - first < kBlocksOfItem && (last == first || sum < fair);)
          sum += cost(b, h, last++);
        items.push_back({{b, h, first, last}, sum});
      }
  std::stable_sort(items.begin(), items.end(), [](const Costed& a, const Costed& b) { return a.cost > b.cost; });
  return items;
}

void run_blocks(SpanInputs& inputs) {
  inputs.build_table();
  const SpanProblem& problem = inputs.problem;
  const std::vector<Costed> items = items_of(problem);
  int64_t most = 0;
  for (const Costed& costed : items) most = std::max(most, costed.item.last_block - costed.item.first_block);
  run_items("span_attention", items.size(), inputs.kernels.forward_bytes(problem, most), [&](size_t i, void* scratch) {
    inputs.kernels.forward(problem, items[i].item, scratch);
  });
}

void run_queries(const SpanInputs& inputs) {
  const SpanProblem& problem = inputs.problem;
  std::vector<SpanQuery> queries;
  for (int64_t b = 0; b < problem.B; ++b)
    for (int64_t h = 0; h < problem.H; ++h)
      for (int64_t t = 0; t < problem.T; ++t) queries.push_back({b, h, t});
  std::stable_sort(queries.begin(), queries.end(), [&](const SpanQuery& a, const SpanQuery& b) {
    return problem.reach_of(a.batch, a.head, 0) > problem.reach_of(b.batch, b.head, 0);
  });
  run_items("span_attention", queries.size(), inputs.kernels.query_bytes(problem), [&](size_t i, void* scratch) {
    inputs.kernels.forward_query(problem, queries[i], scratch);
  });
}

std::tuple<Tensor, Tensor> forward(
    Tensor query, Tensor key, Tensor value, Tensor position_key, Tensor span, OptionalTensor key_mask,
    OptionalTensor dropout_seed, double scale, double dropout_p, int64_t max_span, double ramp, bool zero_cache,
    bool bidirectional) {
  Tensor out = torch::stable::empty_like(query);
  Tensor lse = torch::stable::new_empty(query, {query.size(0), query.size(1), query.size(2)}, statistics_of(query));
  SpanInputs inputs(
      query, key, value, position_key, span, key_mask, dropout_seed,
      {scale, dropout_p, max_span, ramp, zero_cache, bidirectional});
  SpanProblem& problem = inputs.problem;
  Tensor rows = with_rows(out);  // another tensor only where out's last dimension is strided
  problem.out = rows_of(rows);
  problem.lse = lse.data_ptr();
  if (problem.T <= kFewQueries)
    run_queries(inputs);
  else
    run_blocks(inputs);
  if (rows.data_ptr() != out.data_ptr()) torch::stable::copy_(out, rows);
  return {out, lse};
}

}  // namespace
}  // namespace longspan::cpu

STABLE_TORCH_LIBRARY_IMPL(longspan, CPU, m) { m.impl("span_attention", TORCH_BOX(&longspan::cpu::forward)); }
