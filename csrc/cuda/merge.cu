// longspan::merge_pair on a GPU, as models/longspan/ops/merge.py defines it: a warp for each row, one pass over memory.
#include <tuple>

#include "cuda/operators.h"
#include "cuda/tensors.h"

namespace longspan::cuda {

template <class T>
struct MergeProblem {
  int B, H, tokens, D;
  Rows<const T> a, b;
  const Wide<T>*a_lse, *b_lse;  // [B, H, tokens], like everything of a row
  Rows<T> out;
  Wide<T>* lse;
  // Backward.
  Rows<const T> grad_out;
  const Wide<T>* grad_lse;  // or null
  Rows<T> grad_a, grad_b;
  Wide<T>*grad_a_lse, *grad_b_lse;
};

// What each side has of the softmax over both; nothing where neither has a key.
template <class W>
struct MergeShares {
  W a = 0, b = 0, lse;
  __device__ __forceinline__ MergeShares(W a_lse, W b_lse) : lse(a_lse > b_lse ? a_lse : b_lse) {
    if (lse == minus_infinity<W>()) return;
    const W of_a = exp2_fast((a_lse - lse) * kLog2e<W>), of_b = exp2_fast((b_lse - lse) * kLog2e<W>);
    a = of_a / (of_a + of_b), b = of_b / (of_a + of_b);
    lse += log2_fast(of_a + of_b) / kLog2e<W>;
  }
};

template <class T>
__global__ void __launch_bounds__(32 * kRowsOfWarps) merge_pair(const LONGSPAN_GRID_CONSTANT MergeProblem<T> problem) {
  using W = Wide<T>;
  Work work;
  int token;
  if (!own_row(problem.B, problem.H, problem.tokens, work, token)) return;
  const int64_t at = (int64_t(work.batch) * problem.H + work.head) * problem.tokens + token;
  const MergeShares<W> share(problem.a_lse[at], problem.b_lse[at]);
  const T *a = problem.a.at(work, token), *b = problem.b.at(work, token);
  T* out = problem.out.at(work, token);
  for (int d = lane_id(); d < problem.D; d += 32) out[d] = T(share.a * W(a[d]) + share.b * W(b[d]));
  if (lane_id() == 0) problem.lse[at] = share.lse;
}

template <class T>
__global__ void __launch_bounds__(32 * kRowsOfWarps)
    merge_pair_backward(const LONGSPAN_GRID_CONSTANT MergeProblem<T> problem) {
  using W = Wide<T>;
  Work work;
  int token;
  if (!own_row(problem.B, problem.H, problem.tokens, work, token)) return;
  const int64_t at = (int64_t(work.batch) * problem.H + work.head) * problem.tokens + token;
  const MergeShares<W> share(problem.a_lse[at], problem.b_lse[at]);
  const T *a = problem.a.at(work, token), *b = problem.b.at(work, token), *gradient = problem.grad_out.at(work, token);
  T *grad_a = problem.grad_a.at(work, token), *grad_b = problem.grad_b.at(work, token);
  W exchange = 0;
  for (int d = lane_id(); d < problem.D; d += 32) {
    const W g = W(gradient[d]);
    exchange += g * (W(a[d]) - W(b[d]));
    grad_a[d] = T(share.a * g), grad_b[d] = T(share.b * g);
  }
  exchange = warp_sum(exchange) * share.a * share.b;
  if (lane_id() != 0) return;
  const W more = problem.grad_lse && share.lse > minus_infinity<W>() ? problem.grad_lse[at] : W(0);
  problem.grad_a_lse[at] = share.a * more + exchange, problem.grad_b_lse[at] = share.b * more - exchange;
}

namespace {

template <class T>
MergeProblem<T> describe(const Tensor& a, const Tensor& a_lse, const Tensor& b, const Tensor& b_lse) {
  STD_TORCH_CHECK(
      a_lse.scalar_type() == wide_type(a) && b_lse.scalar_type() == wide_type(a),
      "merge: each lse in float32 wanted, in float64 for float64");
  MergeProblem<T> problem{};
  problem.B = int(a.size(0)), problem.H = int(a.size(1)), problem.tokens = int(a.size(2)), problem.D = int(a.size(3));
  problem.a = rows_of<const T>(a), problem.a_lse = data_of<const Wide<T>>(a_lse);
  problem.b = rows_of<const T>(b), problem.b_lse = data_of<const Wide<T>>(b_lse);
  return problem;
}

template <class T>
int64_t merge_blocks(const MergeProblem<T>& problem) {
  const int64_t blocks = (int64_t(problem.B) * problem.H * problem.tokens + kRowsOfWarps - 1) / kRowsOfWarps;
  STD_TORCH_CHECK(blocks < (int64_t(1) << 31), "merge on CUDA: too many rows for one launch");
  return blocks;
}

std::tuple<Tensor, Tensor> forward(Tensor a, Tensor a_lse, Tensor b, Tensor b_lse) {
  const OnDevice device(a);
  Tensor out = torch::stable::empty_like(a), rows = with_rows(out);
  a = with_rows(a), b = with_rows(b);
  a_lse = torch::stable::contiguous(a_lse), b_lse = torch::stable::contiguous(b_lse);
  Tensor lse = torch::stable::empty_like(a_lse);
  with_element_type(a, [&](auto element) {
    using T = decltype(element);
    MergeProblem<T> problem = describe<T>(a, a_lse, b, b_lse);
    problem.out = rows_of<T>(rows), problem.lse = data_of<Wide<T>>(lse);
    if (const int64_t blocks = merge_blocks(problem))
      LONGSPAN_LAUNCH((merge_pair<T>), blocks, 32 * kRowsOfWarps, 0, device.stream, problem);
  });
  return {moved(rows, out), lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    Tensor grad_out, OptionalTensor grad_lse, Tensor a, Tensor a_lse, Tensor b, Tensor b_lse) {
  const OnDevice device(a);
  Tensor grad_a = torch::stable::empty_like(a), grad_b = torch::stable::empty_like(b);
  Tensor a_rows = with_rows(grad_a), b_rows = with_rows(grad_b);
  grad_out = with_rows(grad_out), a = with_rows(a), b = with_rows(b);
  a_lse = torch::stable::contiguous(a_lse), b_lse = torch::stable::contiguous(b_lse), grad_lse = contiguous(grad_lse);
  Tensor grad_a_lse = torch::stable::empty_like(a_lse), grad_b_lse = torch::stable::empty_like(b_lse);
  with_element_type(a, [&](auto element) {
    using T = decltype(element);
    MergeProblem<T> problem = describe<T>(a, a_lse, b, b_lse);
    problem.grad_out = rows_of<const T>(grad_out), problem.grad_lse = data_of<const Wide<T>>(grad_lse);
    problem.grad_a = rows_of<T>(a_rows), problem.grad_a_lse = data_of<Wide<T>>(grad_a_lse);
    problem.grad_b = rows_of<T>(b_rows), problem.grad_b_lse = data_of<Wide<T>>(grad_b_lse);
    if (const int64_t blocks = merge_blocks(problem))
      LONGSPAN_LAUNCH((merge_pair_backward<T>), blocks, 32 * kRowsOfWarps, 0, device.stream, problem);
  });
  return {moved(a_rows, grad_a), grad_a_lse, moved(b_rows, grad_b), grad_b_lse};
}

}  // namespace
}  // namespace longspan::cuda

LONGSPAN_REGISTER(m) {
  m.impl("merge_pair", TORCH_BOX(&longspan::cuda::forward));
  m.impl("merge_pair_backward", TORCH_BOX(&longspan::cuda::backward));
}
