// longspan::lsh_hash on a GPU, as models/longspan/ops/hashing.py defines it. (lsh_order is torch's own stable sort.)
#include "cuda/hashing.cuh"

#include <algorithm>
#include <vector>

#include "cuda/operators.h"
#include "cuda/tensors.h"

namespace longspan::cuda {
namespace {

template <class T>
void launch_hash(const HashProblem<T>& problem, void* stream) {
  Carver carver(nullptr);
  carver.take<Wide<T>>(kHashedTokens * kPitch<Wide<T>, kHashedFeatures>);
  carver.take<Wide<T>>(kHashedAxes * kPitch<Wide<T>, kHashedFeatures>);
  const int64_t tiles = (int64_t(problem.num_tokens) + kHashedTokens - 1) / kHashedTokens;
  const int64_t blocks = tiles * problem.R * problem.H * problem.B;
  STD_TORCH_CHECK(blocks < (int64_t(1) << 31), "lsh_hash on CUDA: too many tokens for one launch");
  if (blocks) LONGSPAN_LAUNCH((lsh_hash<T>), blocks, 2 * kHashedTokens, carver.used(), stream, problem);
}

Tensor hash(Tensor query_key, Tensor rotations, std::vector<int64_t> factors, OptionalTensor key_mask) {
  const OnDevice device(query_key);
  int64_t axes = 0, buckets_of_all = 1;
  for (const int64_t factor : factors) axes += factor / 2, buckets_of_all *= factor;
  STD_TORCH_CHECK(
      rotations.size(0) == query_key.size(1) && rotations.size(1) == query_key.size(3) && rotations.size(3) == axes,
      "lsh_hash: rotations [heads, head size, rounds, half the sum of the factors] wanted");
  STD_TORCH_CHECK(factors.size() <= size_t(kMostFactors), "lsh_hash on CUDA: at most ", kMostFactors, " factors");
  query_key = with_rows(query_key), key_mask = contiguous(key_mask);
  rotations = torch::stable::contiguous(torch::stable::to(rotations, wide_type(query_key)));
  Tensor buckets = torch::stable::new_empty(
      query_key, {query_key.size(0), query_key.size(1), rotations.size(2), query_key.size(2)}, ScalarType::Long);
  with_element_type(query_key, [&](auto element) {
    using T = decltype(element);
    HashProblem<T> problem{};
    problem.B = int(query_key.size(0)), problem.H = int(query_key.size(1)), problem.num_tokens = int(query_key.size(2));
    problem.D = int(query_key.size(3)), problem.R = int(rotations.size(2)), problem.axes = int(axes);
    problem.query_key = data_of<const T>(query_key);
    problem.batch = query_key.stride(0), problem.head = query_key.stride(1), problem.row = query_key.stride(2);
    problem.rotations = data_of<const Wide<T>>(rotations), problem.key_mask = data_of<const bool>(key_mask);
    problem.num_factors = int(factors.size());
    std::copy(factors.begin(), factors.end(), problem.factors);
    problem.masked_bucket = buckets_of_all, problem.buckets = data_of<int64_t>(buckets);
    launch_hash(problem, device.stream);
  });
  return buckets;
}

}  // namespace
}  // namespace longspan::cuda

LONGSPAN_REGISTER(m) { m.impl("lsh_hash", TORCH_BOX(&longspan::cuda::hash)); }
