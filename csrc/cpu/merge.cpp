// longspan::merge_pair on the CPU, as models/longspan/ops/merge.py defines it: one pass over memory, in parallel.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/tensors.h"

namespace longspan::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
#include "cpu/staging.h"

constexpr int64_t kGrain = 256;  // rows worth a thread

// Calls body(rows of D numbers of T as scratch, batch, head, token, index of statistics) for every row, in the order in
// which `like` lies in memory.
template <class T, int Buffers, class Body>
void for_each_row(const Tensor& like, Body&& body) {
  const int64_t B = like.size(0), H = like.size(1), S = like.size(2), D = like.size(3);
  const bool heads_inside = like.stride(1) < like.stride(2);
  torch::stable::parallel_for(0, B * H * S, kGrain, [&](int64_t begin, int64_t end) {
    std::vector<T> scratch(Buffers * D);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / (H * S), rest = i % (H * S);
      const int64_t h = heads_inside ? rest % H : rest / S, t = heads_inside ? rest / H : rest % S;
      body(scratch.data(), b, h, t, (b * H + h) * S + t);
    }
  });
}

template <class T>
struct Shares {
  T a, b, lse;
  Shares(T a_lse, T b_lse) {
    const T high = a_lse > b_lse ? a_lse : b_lse;
    if (high == -INFINITY) {
      a = b = 0, lse = high;
      return;
    }
    a = std::exp(a_lse - high), b = std::exp(b_lse - high);
    lse = high + std::log(a + b);
    const T total = 1 / (a + b);
    a *= total, b *= total;
  }
};

template <class T>
void forward_rows(
    const Tensor& a, const Tensor& a_lse, const Tensor& b, const Tensor& b_lse, Tensor& out, Tensor& lse) {
  const Rows rows_a = rows_of(a), rows_b = rows_of(b), rows_out = rows_of(out);
  const T *lse_a = static_cast<const T*>(a_lse.data_ptr()), *lse_b = static_cast<const T*>(b_lse.data_ptr());
  T* to_lse = static_cast<T*>(lse.data_ptr());
  const int64_t D = a.size(3);
  for_each_row<T, 2>(out, [&](T* scratch, int64_t batch, int64_t head, int64_t token, int64_t at) {
    T *x = scratch, *y = scratch + D;
    read_row(x, row_of(rows_a, batch, head, token), rows_a.dtype, D);
    read_row(y, row_of(rows_b, batch, head, token), rows_b.dtype, D);
    const Shares<T> share(lse_a[at], lse_b[at]);
    for (int64_t d = 0; d < D; ++d) x[d] = share.a * x[d] + share.b * y[d];
    write_row(row_of(rows_out, batch, head, token), x, T(1), rows_out.dtype, D);
    to_lse[at] = share.lse;
  });
}

std::tuple<Tensor, Tensor> forward(Tensor a, Tensor a_lse, Tensor b, Tensor b_lse) {
  Tensor out = torch::stable::empty_like(a);
  a_lse = torch::stable::contiguous(a_lse), b_lse = torch::stable::contiguous(b_lse);
  Tensor lse = torch::stable::empty_like(a_lse);
  Tensor rows = with_rows(out);
  a = with_rows(a), b = with_rows(b);
  if (lse.scalar_type() == ScalarType::Double)
    forward_rows<double>(a, a_lse, b, b_lse, rows, lse);
  else
    forward_rows<float>(a, a_lse, b, b_lse, rows, lse);
  if (rows.data_ptr() != out.data_ptr()) torch::stable::copy_(out, rows);
  return {out, lse};
}

template <class T>
void backward_rows(
    const Tensor& grad_out, const std::optional<Tensor>& grad_lse, const Tensor& a, const Tensor& a_lse,
    const Tensor& b, const Tensor& b_lse, Tensor* grads) {
  const Rows rows_g = rows_of(grad_out), rows_a = rows_of(a), rows_b = rows_of(b);
  const Rows to_a = rows_of(grads[0]), to_b = rows_of(grads[2]);
  T *to_a_lse = static_cast<T*>(grads[1].data_ptr()), *to_b_lse = static_cast<T*>(grads[3].data_ptr());
  const T *lse_a = static_cast<const T*>(a_lse.data_ptr()), *lse_b = static_cast<const T*>(b_lse.data_ptr());
  const T* extra = grad_lse ? static_cast<const T*>(grad_lse->data_ptr()) : nullptr;
  const int64_t D = a.size(3);
  for_each_row<T, 3>(grad_out, [&](T* scratch, int64_t batch, int64_t head, int64_t token, int64_t at) {
    T *g = scratch, *x = scratch + D, *y = scratch + 2 * D;
    read_row(g, row_of(rows_g, batch, head, token), rows_g.dtype, D);
    read_row(x, row_of(rows_a, batch, head, token), rows_a.dtype, D);
    read_row(y, row_of(rows_b, batch, head, token), rows_b.dtype, D);
    const Shares<T> share(lse_a[at], lse_b[at]);
    T exchange = 0;
    for (int64_t d = 0; d < D; ++d) exchange += g[d] * (x[d] - y[d]);
    exchange *= share.a * share.b;
    const T more = extra && share.lse != -INFINITY ? extra[at] : T(0);
    to_a_lse[at] = share.a * more + exchange;
    to_b_lse[at] = share.b * more - exchange;
    write_row(row_of(to_a, batch, head, token), g, share.a, to_a.dtype, D);
    write_row(row_of(to_b, batch, head, token), g, share.b, to_b.dtype, D);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    Tensor grad_out, std::optional<Tensor> grad_lse, Tensor a, Tensor a_lse, Tensor b, Tensor b_lse) {
  Tensor results[4] = {
      torch::stable::empty_like(a), torch::stable::empty_like(a_lse), torch::stable::empty_like(b),
      torch::stable::empty_like(b_lse)};
  Tensor computed[4] = {
      with_rows(results[0]), torch::stable::contiguous(results[1]), with_rows(results[2]),
      torch::stable::contiguous(results[3])};
  grad_out = with_rows(grad_out), a = with_rows(a), b = with_rows(b);
  a_lse = torch::stable::contiguous(a_lse), b_lse = torch::stable::contiguous(b_lse);
  if (grad_lse) grad_lse = torch::stable::contiguous(*grad_lse);
  if (a_lse.scalar_type() == ScalarType::Double)
    backward_rows<double>(grad_out, grad_lse, a, a_lse, b, b_lse, computed);
  else
    backward_rows<float>(grad_out, grad_lse, a, a_lse, b, b_lse, computed);
  for (int i = 0; i < 4; ++i)
    if (computed[i].data_ptr() != results[i].data_ptr()) torch::stable::copy_(results[i], computed[i]);
  return {results[0], results[1], results[2], results[3]};
}

}  // namespace
}  // namespace longspan::cpu

STABLE_TORCH_LIBRARY_IMPL(longspan, CPU, m) {
  m.impl("merge_pair", TORCH_BOX(&longspan::cpu::forward));
  m.impl("merge_pair_backward", TORCH_BOX(&longspan::cpu::backward));
}
