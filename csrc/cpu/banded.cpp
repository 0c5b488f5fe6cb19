// longspan::banded_attention on the CPU, as models/longspan/ops/banded.py defines it, in parallel over runs of queries;
// and longspan::dense_attention, which is a band without limits.
#include "cpu/banded.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/tensors.h"

namespace longspan::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

const BandedKernels& kernels_for(const Tensor& query) {
  if (query.scalar_type() == ScalarType::Double) return banded_portable_f64();
  switch (isa()) {
    case Isa::portable:
      return banded_portable();
    case Isa::avx2:
      return banded_avx2();
    default:
      return banded_avx512();
  }
}

const BandedKernels& forward_kernels_for(const Tensor& query, const BandedProblem& problem) {
  if (query.scalar_type() == ScalarType::BFloat16 && !problem.dropout.active && problem.scale > 0) {
    if (isa() == Isa::amx) return banded_bf16_amx();
    if (isa() == Isa::avx512_bf16) return banded_bf16_avx512();
  }
  return kernels_for(query);
}

// Every chain cut into runs of at most `length(head)` queries.
template <class Length>
std::vector<BandedItem> items_of(const BandedProblem& problem, Length&& length) {
  std::vector<BandedItem> items;
  for (int64_t b = 0; b < problem.B; ++b)
    for (int64_t h = 0; h < problem.H; ++h) {
      const int64_t run = length(h), step = BandedChain(problem, h, 0).step;
      for (int64_t residue = 0; residue < step; ++residue) {
        const int64_t queries = BandedChain(problem, h, residue).num_queries;
        for (int64_t begin = 0; begin < queries; begin += run)
          items.push_back({b, h, residue, begin, std::min(begin + run, queries)});
      }
    }
  return items;
}

int64_t band_of(const BandedProblem& problem, int64_t head) { return problem.left[head] + problem.right[head]; }

int64_t whole_blocks(int64_t queries) { return (queries + kRunQuantum - 1) / kRunQuantum * kRunQuantum; }

void run(
    const BandedProblem& problem, const std::vector<BandedItem>& items, const BandedKernels& kernels, bool backward) {
  int64_t most_keys = 0;
  for (const BandedItem& item : items) most_keys = std::max(most_keys, BandedRun(problem, item).num_keys());
  const auto kernel = backward ? kernels.backward : kernels.forward;
  run_items(
      "banded_attention", items.size(), kernels.scratch_bytes(problem, most_keys, backward),
      [&](size_t i, void* scratch) { kernel(problem, items[i], scratch); });
}

BandedProblem problem_of(
    const Tensor& query, const Tensor& key, const Tensor& value, const std::optional<Tensor>& key_mask,
    const std::optional<Tensor>& dropout_seed, double scale, double dropout_p, Ints& left, Ints& right,
    const Ints& dilation) {
  BandedProblem problem{};
  problem.B = query.size(0), problem.H = query.size(1), problem.T = query.size(2), problem.D = query.size(3);
  problem.S = key.size(2);
  const size_t heads = size_t(problem.H);
  STD_TORCH_CHECK(
      left.size() == heads && right.size() == heads && dilation.size() == heads,
      "banded_attention: one left, right and dilation per head wanted");
  STD_TORCH_CHECK(
      key.size(0) == problem.B && key.size(1) == problem.H && key.size(3) == problem.D,
      "banded_attention: keys and values of the queries' batch, heads and head size wanted");
  for (const int64_t step : dilation) STD_TORCH_CHECK(step >= 1, "banded_attention: a dilation of at least 1 wanted");
  for (Ints* sides : {&left, &right})  // a window that outgrows the problem is cut to where it reaches everything
    for (int64_t& side : *sides) side = std::min(side, problem.S + problem.T);
  problem.left = left.data(), problem.right = right.data(), problem.dilation = dilation.data();
  problem.scale = scale;
  if (key_mask) problem.key_mask = static_cast<const bool*>(key_mask->data_ptr());
  if (dropout_seed) problem.dropout = make_dropout(*static_cast<const int64_t*>(dropout_seed->data_ptr()), dropout_p);
  problem.query = rows_of(query), problem.key = rows_of(key), problem.value = rows_of(value);
  return problem;
}

std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(torch::stable::contiguous(*tensor)) : std::nullopt;
}

std::tuple<Tensor, Tensor> forward(
    Tensor query, Tensor key, Tensor value, std::optional<Tensor> key_mask, std::optional<Tensor> dropout_seed,
    double scale, double dropout_p, Ints left, Ints right, Ints dilation) {
  Tensor out = torch::stable::empty_like(query);
  Tensor lse = torch::stable::new_empty(query, {query.size(0), query.size(1), query.size(2)}, statistics_of(query));
  query = with_rows(query), key = with_rows(key), value = with_rows(value);
  key_mask = contiguous(key_mask);
  BandedProblem problem =
      problem_of(query, key, value, key_mask, dropout_seed, scale, dropout_p, left, right, dilation);
  Tensor rows = with_rows(out);  // another tensor only where out's last dimension is strided
  problem.out = rows_of(rows);
  problem.lse = lse.data_ptr();
  // Long runs stage fewer keys twice; short ones keep all threads busy.
  const int64_t queries = problem.B * problem.H * problem.T, threads = torch::stable::get_num_threads();
  const int64_t fair = std::max<int64_t>(queries / (8 * threads), kQueryBlock);
  run(problem,
      items_of(
          problem,
          [&](int64_t head) {
            return whole_blocks(std::min(std::max<int64_t>(2 * band_of(problem, head), 8 * kQueryBlock), fair));
          }),
      forward_kernels_for(query, problem), false);
  if (rows.data_ptr() != out.data_ptr()) torch::stable::copy_(out, rows);
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> backward(
    Tensor grad_out, std::optional<Tensor> grad_lse, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse,
    std::optional<Tensor> key_mask, std::optional<Tensor> dropout_seed, double scale, double dropout_p, Ints left,
    Ints right, Ints dilation) {
  Tensor grads[3] = {
      torch::stable::empty_like(query), torch::stable::empty_like(key), torch::stable::empty_like(value)};
  query = with_rows(query), key = with_rows(key), value = with_rows(value), out = with_rows(out);
  grad_out = with_rows(grad_out), lse = torch::stable::contiguous(lse);
  key_mask = contiguous(key_mask), grad_lse = contiguous(grad_lse);
  BandedProblem problem =
      problem_of(query, key, value, key_mask, dropout_seed, scale, dropout_p, left, right, dilation);
  problem.out = rows_of(out), problem.grad_out = rows_of(grad_out);
  problem.lse = lse.data_ptr();
  if (grad_lse) problem.grad_lse = grad_lse->data_ptr();
  Tensor grad_query = with_rows(grads[0]);
  problem.grad_query = rows_of(grad_query);
  // Keys get gradients from several runs: summed in the statistics dtype, in place where that is the gradient's own.
  auto sums_for = [&](Tensor& grad) {
    if (grad.scalar_type() == statistics_of(grad) && grad.stride(3) == 1) return torch::stable::zero_(grad);
    return torch::stable::new_zeros(grad, {problem.B, problem.H, problem.S, problem.D}, statistics_of(grad));
  };
  Tensor grad_key = sums_for(grads[1]), grad_value = sums_for(grads[2]);
  problem.grad_key = rows_of(grad_key), problem.grad_value = rows_of(grad_value);
  // A run at least as long as its band shares keys with its two neighbours only. So first all even runs, then all odd
  // ones: nobody writes where another does, and every sum has one order, whatever the threads do.
  auto length = [&](int64_t head) { return whole_blocks(std::max<int64_t>(band_of(problem, head), 16 * kQueryBlock)); };
  const std::vector<BandedItem> items = items_of(problem, length);
  for (int64_t parity : {0, 1}) {
    std::vector<BandedItem> phase;
    for (const BandedItem& item : items)
      if (item.begin / length(item.head) % 2 == parity) phase.push_back(item);
    run(problem, phase, kernels_for(query), true);
  }
  const Tensor computed[3] = {grad_query, grad_key, grad_value};
  for (int i = 0; i < 3; ++i)
    if (computed[i].data_ptr() != grads[i].data_ptr()) torch::stable::copy_(grads[i], computed[i]);
  return {grads[0], grads[1], grads[2]};
}

// Every query against every key: a band that reaches everything.
struct Unlimited {
  Ints reach, dilation;
  Unlimited(const Tensor& query, const Tensor& key)
      : reach(query.size(1), query.size(2) + key.size(2)), dilation(query.size(1), 1) {}
};

std::tuple<Tensor, Tensor> dense_forward(
    Tensor query, Tensor key, Tensor value, std::optional<Tensor> key_mask, std::optional<Tensor> dropout_seed,
    double scale, double dropout_p) {
  const Unlimited band(query, key);
  return forward(query, key, value, key_mask, dropout_seed, scale, dropout_p, band.reach, band.reach, band.dilation);
}

std::tuple<Tensor, Tensor, Tensor> dense_backward(
    Tensor grad_out, std::optional<Tensor> grad_lse, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse,
    std::optional<Tensor> key_mask, std::optional<Tensor> dropout_seed, double scale, double dropout_p) {
  const Unlimited band(query, key);
  return backward(
      grad_out, grad_lse, query, key, value, out, lse, key_mask, dropout_seed, scale, dropout_p, band.reach, band.reach,
      band.dilation);
}

}  // namespace
}  // namespace longspan::cpu

STABLE_TORCH_LIBRARY_IMPL(longspan, CPU, m) {
  m.impl("banded_attention", TORCH_BOX(&longspan::cpu::forward));
  m.impl("banded_attention_backward", TORCH_BOX(&longspan::cpu::backward));
  m.impl("dense_attention", TORCH_BOX(&longspan::cpu::dense_forward));
  m.impl("dense_attention_backward", TORCH_BOX(&longspan::cpu::dense_backward));
}
