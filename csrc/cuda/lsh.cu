// longspan::lsh_attention and longspan::bucket_attention on a GPU, as models/longspan/ops/lsh.py defines them. Rounds
// follow each other, so that each token's row has one writer at a time and every sum one order.
#include <algorithm>
#include <tuple>

#include "cuda/operators.h"
#include "cuda/tensors.h"

namespace longspan::cuda {

// slot_of[token] = slot, for rows of T slots.
__global__ void __launch_bounds__(128) invert_order(const int* order, int T, int64_t count, int* slot_of) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) slot_of[i / T * T + order[i]] = int(i % T);
}

namespace {

constexpr int kStrictChunk = 64;  // queries of bucket_attention that share their keys

// What both operators are given, as kernels want it.
struct Sorted {
  Tensor query_key, value, order, first;
  OptionalTensor key_mask, dropout_seed, slot_of;
  double dropout_p;

  Sorted(
      const Tensor& query_key, const Tensor& value, const Tensor& order, const Tensor& first,
      const OptionalTensor& key_mask, const OptionalTensor& dropout_seed, double dropout_p)
      : query_key(with_rows(query_key)),
        value(with_rows(value)),
        order(torch::stable::contiguous(order)),
        first(torch::stable::contiguous(first)),
        key_mask(contiguous(key_mask)),
        dropout_seed(dropout_seed),
        dropout_p(dropout_p) {
    STD_TORCH_CHECK(
        order.scalar_type() == ScalarType::Int && first.scalar_type() == ScalarType::Int,
        "order and first must be int32, as lsh_order returns them");
  }

  template <class T>
  Problem<T> problem() const {
    Problem<T> problem = describe<T>(query_key, query_key.size(2), key_mask, dropout_seed, 1.0, dropout_p);
    problem.pattern.chunked = problem.pattern.shared = true;
    problem.pattern.chunks.R = int(order.size(2));
    problem.pattern.chunks.order = data_of<const int>(order), problem.pattern.chunks.first = data_of<const int>(first);
    problem.query = problem.key = rows_of<const T>(query_key), problem.value = rows_of<const T>(value);
    return problem;
  }
};

// Who sees whom.
struct Chunked {
  int64_t size, before, after;
  bool causal, wrap, same_bucket, deduplicate;

  void describe(Sorted& sorted, Pattern& pattern, void* stream) const {
    Chunks& chunks = pattern.chunks;
    pattern.causal = causal;
    chunks.chunk = int(std::max<int64_t>(1, std::min<int64_t>(size, pattern.T)));
    const int64_t most = wrap ? int64_t(1) << 20 : pattern.num_chunks();  // neighbours that no chunk has
    STD_TORCH_CHECK(!wrap || before + after < most, "lsh_attention: fewer than ", most, " neighbouring chunks wanted");
    chunks.before = int(std::min(before, most)), chunks.after = int(std::min(after, most));
    chunks.wrap = wrap, chunks.same_bucket = same_bucket, chunks.deduplicate = deduplicate;
    chunks.reach = kNobody;
    if (!deduplicate) return;
    const int64_t copies = chunks.R * (int64_t(chunks.before) + 1 + chunks.after);
    STD_TORCH_CHECK(copies < 65536, "lsh_attention: fewer than 65536 neighbours in all rounds wanted, got ", copies);
    sorted.slot_of = torch::stable::empty_like(sorted.order);
    chunks.slot_of = data_of<const int>(sorted.slot_of);
    if (const int64_t slots = sorted.order.numel())
      LONGSPAN_LAUNCH(
          invert_order, (slots + 127) / 128, 128, 0, stream, chunks.order, pattern.T, slots,
          data_of<int>(sorted.slot_of));
  }
};

// The newest `window` slots of the same bucket.
struct Strict {
  int64_t window;

  void describe(Sorted&, Pattern& pattern, void*) const {
    Chunks& chunks = pattern.chunks;
    pattern.causal = true;
    chunks.chunk = std::max(1, std::min(kStrictChunk, pattern.T));
    chunks.reach = int(std::min<int64_t>(window, pattern.T));
    chunks.before = (chunks.reach + chunks.chunk - 1) / chunks.chunk;
    chunks.after = 0;
    chunks.same_bucket = true;
  }
};

template <class Windows>
std::tuple<Tensor, Tensor> attend(Sorted sorted, const Windows& windows, const Tensor& query_key) {
  const OnDevice device(query_key);
  Tensor out = torch::stable::empty_like(query_key), lse = new_wide(query_key);
  Tensor rows = with_rows(out), factor = new_wide(query_key);
  const int rounds = int(sorted.order.size(2));
  OptionalTensor running = rounds > 1 ? OptionalTensor(new_sums(query_key)) : std::nullopt;
  with_element_type(query_key, [&](auto element) {
    using T = decltype(element);
    Problem<T> problem = sorted.problem<T>();
    windows.describe(sorted, problem.pattern, device.stream);
    problem.aligned = aligned_rows(sorted.query_key, sorted.value, rows);
    problem.out = rows_of<T>(rows), problem.lse = data_of<Wide<T>>(lse);
    if (running) problem.running = rows_of<Wide<T>>(*running);
    launch_key_factors(problem, data_of<Wide<T>>(factor), device.stream);
    problem.factor = data_of<Wide<T>>(factor);
    for (int round = 0; round < rounds; ++round) {
      problem.pattern.chunks.round = round;
      problem.resume = round > 0, problem.last = round == rounds - 1;
      launch_forward(problem, device.stream);
    }
  });
  return {moved(rows, out), lse};
}

template <class Windows>
std::tuple<Tensor, Tensor> attend_backward(
    Sorted sorted, const Windows& windows, Tensor grad_out, OptionalTensor grad_lse, const Tensor& query_key,
    const Tensor& value, Tensor out, Tensor lse) {
  const OnDevice device(query_key);
  grad_out = with_rows(grad_out), out = with_rows(out);
  lse = torch::stable::contiguous(lse), grad_lse = contiguous(grad_lse);
  Tensor query_sums = new_sums(query_key), value_sums = new_sums(value);
  Tensor factor = new_wide(query_key), delta = new_wide(query_key);
  with_element_type(query_key, [&](auto element) {
    using T = decltype(element);
    Problem<T> problem = sorted.problem<T>();
    windows.describe(sorted, problem.pattern, device.stream);
    problem.aligned = aligned_rows(sorted.query_key, sorted.value, grad_out);
    problem.grad_out = rows_of<const T>(grad_out), problem.lse = data_of<Wide<T>>(lse);
    problem.query_sums = rows_of<Wide<T>>(query_sums), problem.value_sums = rows_of<Wide<T>>(value_sums);
    launch_key_factors(problem, data_of<Wide<T>>(factor), device.stream);
    problem.factor = data_of<Wide<T>>(factor);
    launch_query_deltas(
        problem, rows_of<const T>(out), data_of<const Wide<T>>(grad_lse), data_of<Wide<T>>(delta), device.stream);
    problem.delta = data_of<Wide<T>>(delta);
    for (int round = 0; round < problem.pattern.chunks.R; ++round) {
      problem.pattern.chunks.round = round;
      for (const Role role : {Role::queries, Role::keys}) launch_backward(problem, role, device.stream);
    }
  });
  return {moved(query_sums, torch::stable::empty_like(query_key)), moved(value_sums, torch::stable::empty_like(value))};
}

std::tuple<Tensor, Tensor> forward(
    Tensor query_key, Tensor value, Tensor order, Tensor first, OptionalTensor key_mask, OptionalTensor dropout_seed,
    double dropout_p, int64_t chunk_size, int64_t before, int64_t after, bool causal, bool wrap, bool same_bucket,
    bool deduplicate) {
  return attend(
      Sorted(query_key, value, order, first, key_mask, dropout_seed, dropout_p),
      Chunked{chunk_size, before, after, causal, wrap, same_bucket, deduplicate}, query_key);
}

std::tuple<Tensor, Tensor> backward(
    Tensor grad_out, OptionalTensor grad_lse, Tensor query_key, Tensor value, Tensor out, Tensor lse, Tensor order,
    Tensor first, OptionalTensor key_mask, OptionalTensor dropout_seed, double dropout_p, int64_t chunk_size,
    int64_t before, int64_t after, bool causal, bool wrap, bool same_bucket, bool deduplicate) {
  return attend_backward(
      Sorted(query_key, value, order, first, key_mask, dropout_seed, dropout_p),
      Chunked{chunk_size, before, after, causal, wrap, same_bucket, deduplicate}, grad_out, grad_lse, query_key, value,
      out, lse);
}

std::tuple<Tensor, Tensor> bucket_forward(
    Tensor query_key, Tensor value, Tensor order, Tensor first, OptionalTensor key_mask, OptionalTensor dropout_seed,
    double dropout_p, int64_t window) {
  return attend(Sorted(query_key, value, order, first, key_mask, dropout_seed, dropout_p), Strict{window}, query_key);
}

std::tuple<Tensor, Tensor> bucket_backward(
    Tensor grad_out, OptionalTensor grad_lse, Tensor query_key, Tensor value, Tensor out, Tensor lse, Tensor order,
    Tensor first, OptionalTensor key_mask, OptionalTensor dropout_seed, double dropout_p, int64_t window) {
  return attend_backward(
      Sorted(query_key, value, order, first, key_mask, dropout_seed, dropout_p), Strict{window}, grad_out, grad_lse,
      query_key, value, out, lse);
}

}  // namespace
}  // namespace longspan::cuda

LONGSPAN_REGISTER(m) {
  m.impl("lsh_attention", TORCH_BOX(&longspan::cuda::forward));
  m.impl("lsh_attention_backward", TORCH_BOX(&longspan::cuda::backward));
  m.impl("bucket_attention", TORCH_BOX(&longspan::cuda::bucket_forward));
  m.impl("bucket_attention_backward", TORCH_BOX(&longspan::cuda::bucket_backward));
}
