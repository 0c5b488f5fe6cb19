// longspan::lsh_hash and longspan::lsh_order on the CPU, as models/longspan/ops/hashing.py defines them.
#include "cpu/hashing.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <numeric>
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

constexpr int64_t kTokens = 512;  // of one item

const HashingKernel& kernel_for(const Tensor& query_key) {
  if (query_key.scalar_type() == ScalarType::Double) return hashing_portable_f64();
  switch (isa()) {
    case Isa::portable:
      return hashing_portable();
    case Isa::avx2:
      return hashing_avx2();
    default:
      return hashing_avx512();
  }
}

Tensor hash(Tensor query_key, Tensor rotations, std::vector<int64_t> factors, std::optional<Tensor> key_mask) {
  HashingProblem problem{};
  problem.B = query_key.size(0), problem.H = query_key.size(1), problem.T = query_key.size(2);
  problem.D = query_key.size(3), problem.R = rotations.size(2), problem.columns = rotations.size(3);
  const int64_t axes = std::accumulate(factors.begin(), factors.end(), int64_t(0)) / 2;
  STD_TORCH_CHECK(
      rotations.size(0) == problem.H && rotations.size(1) == problem.D && problem.columns == axes,
      "lsh_hash: rotations [heads, head size, rounds, half the sum of the factors] wanted");
  query_key = with_rows(query_key);
  const int64_t size = problem.H * problem.D * problem.R * problem.columns;
  Tensor wide = torch::stable::new_zeros(rotations, {size + kHashingSlack}, statistics_of(query_key));
  Tensor place = torch::stable::narrow(wide, 0, 0, size);
  torch::stable::copy_(place, torch::stable::reshape(torch::stable::contiguous(rotations), {size}));
  Tensor buckets = torch::stable::new_empty(query_key, {problem.B, problem.H, problem.R, problem.T}, ScalarType::Long);
  if (key_mask) key_mask = torch::stable::contiguous(*key_mask);
  problem.query_key = rows_of(query_key);
  problem.rotations = wide.data_ptr();
  problem.num_factors = int64_t(factors.size()), problem.factors = factors.data();
  if (key_mask) problem.key_mask = static_cast<const bool*>(key_mask->data_ptr());
  problem.masked_bucket = std::accumulate(factors.begin(), factors.end(), int64_t(1), std::multiplies<int64_t>());
  problem.buckets = static_cast<int64_t*>(buckets.data_ptr());

  const int64_t runs = (problem.T + kTokens - 1) / kTokens;
  const HashingKernel& kernel = kernel_for(query_key);
  run_items(
      "lsh_hash", size_t(problem.B * problem.H * runs), kernel.scratch_bytes(problem), [&](size_t i, void* scratch) {
        const int64_t run = int64_t(i) % runs, head = int64_t(i) / runs % problem.H;
        const int64_t batch = int64_t(i) / runs / problem.H;
        kernel.run(problem, {batch, head, run * kTokens, std::min((run + 1) * kTokens, problem.T)}, scratch);
      });
  return buckets;
}

// Stable order of one row: by counting where the buckets are few, else by comparing.
template <class Bucket>
void order_row(
    const Bucket* buckets, const bool* mask, int64_t T, int32_t* order, int32_t* first, std::vector<int32_t>& counts) {
  Bucket low = buckets[0], high = buckets[0];
  for (int64_t t = 0; t < T; ++t) low = std::min(low, buckets[t]), high = std::max(high, buckets[t]);
  const uint64_t range = uint64_t(high) - uint64_t(low);
  if (range <= uint64_t(2 * T + 1024)) {
    const int64_t last = int64_t(range) + 1;  // the bucket of masked positions
    auto bucket_of = [&](int64_t t) { return mask && !mask[t] ? last : int64_t(uint64_t(buckets[t]) - uint64_t(low)); };
    counts.assign(size_t(last) + 2, 0);
    for (int64_t t = 0; t < T; ++t) ++counts[size_t(bucket_of(t)) + 1];
    for (int64_t b = 0; b <= last; ++b) {
      const int32_t begin = counts[size_t(b)], end = begin + counts[size_t(b) + 1];
      for (int32_t slot = begin; slot < end; ++slot) first[slot] = begin;
      counts[size_t(b) + 1] = end;
    }
    for (int64_t t = 0; t < T; ++t) order[counts[size_t(bucket_of(t))]++] = int32_t(t);
    return;
  }
  auto masked = [&](int32_t t) { return mask && !mask[t]; };
  std::iota(order, order + T, 0);
  std::stable_sort(order, order + T, [&](int32_t a, int32_t b) {
    return masked(a) != masked(b) ? masked(b) : !masked(a) && buckets[a] < buckets[b];
  });
  for (int64_t slot = 0; slot < T; ++slot) {
    const int32_t here = order[slot], before = slot ? order[slot - 1] : here;
    const bool same = slot && masked(here) == masked(before) && (masked(here) || buckets[here] == buckets[before]);
    first[slot] = same ? first[slot - 1] : int32_t(slot);
  }
}

std::tuple<Tensor, Tensor> order(Tensor buckets, std::optional<Tensor> key_mask) {
  const bool narrow = buckets.scalar_type() == ScalarType::Int;
  STD_TORCH_CHECK(narrow || buckets.scalar_type() == ScalarType::Long, "lsh_order: buckets must be int32 or int64");
  buckets = torch::stable::contiguous(buckets);
  if (key_mask) key_mask = torch::stable::contiguous(*key_mask);
  const int64_t B = buckets.size(0), H = buckets.size(1), R = buckets.size(2), T = buckets.size(3);
  Tensor order = torch::stable::new_empty(buckets, {B, H, R, T}, ScalarType::Int);
  Tensor first = torch::stable::empty_like(order);
  if (T == 0) return {order, first};
  const bool* mask = key_mask ? static_cast<const bool*>(key_mask->data_ptr()) : nullptr;
  torch::stable::parallel_for(0, B * H * R, 1, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> counts;
    for (int64_t row = begin; row < end; ++row) {
      const bool* of_row = mask ? mask + row / (H * R) * T : nullptr;
      int32_t* to = static_cast<int32_t*>(order.data_ptr()) + row * T;
      int32_t* to_first = static_cast<int32_t*>(first.data_ptr()) + row * T;
      if (narrow)
        order_row(static_cast<const int32_t*>(buckets.data_ptr()) + row * T, of_row, T, to, to_first, counts);
      else
        order_row(static_cast<const int64_t*>(buckets.data_ptr()) + row * T, of_row, T, to, to_first, counts);
    }
  });
  return {order, first};
}

}  // namespace
}  // namespace longspan::cpu

STABLE_TORCH_LIBRARY_IMPL(longspan, CPU, m) {
  m.impl("lsh_hash", TORCH_BOX(&longspan::cpu::hash));
  m.impl("lsh_order", TORCH_BOX(&longspan::cpu::order));
}
