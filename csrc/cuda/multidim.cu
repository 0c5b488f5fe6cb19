// longspan::multidim_attention on a GPU, as models/longspan/ops/multidim.py defines it.
#include "cuda/multidim.cuh"

#include <tuple>
#include <utility>

#include "cuda/operators.h"
#include "cuda/tensors.h"

namespace longspan::cuda {
namespace {

template <class T>
MultidimProblem<T> describe(
    const Tensor& dependent, const Tensor& head, const Tensor& value, const Tensor& bias,
    const OptionalTensor& key_mask, bool earlier, bool later, bool own, double scale) {
  STD_TORCH_CHECK(bias.scalar_type() == wide_type(value), "multidim_attention: bias in the dtype of the sums wanted");
  MultidimProblem<T> p{};
  p.B = int(value.size(0)), p.L = int(value.size(1)), p.D = int(value.size(2));
  p.earlier = earlier, p.later = later, p.own = own, p.scale = Wide<T>(scale);
  p.dependent = data_of<const T>(dependent), p.head = data_of<const T>(head), p.value = data_of<const T>(value);
  p.bias = data_of<const Wide<T>>(bias), p.key_mask = data_of<const bool>(key_mask);
  return p;
}

template <class T>
int64_t multidim_blocks(const MultidimProblem<T>& p) {
  auto cut = [](int64_t length, int64_t size) { return (length + size - 1) / size; };
  const int64_t blocks = p.B * cut(p.L, kMultidimRows) * cut(p.D, kFeatures);
  STD_TORCH_CHECK(blocks < (int64_t(1) << 31), "multidim_attention on CUDA: too large for one launch");
  return blocks;
}

template <class T>
size_t multidim_memory() {
  Carver carver(nullptr);
  carver.take<MultidimToken<T>>(kOthers * kFeatures);
  return carver.used();
}

std::tuple<Tensor, Tensor> forward(
    Tensor dependent, Tensor head, Tensor value, Tensor bias, OptionalTensor key_mask, bool earlier, bool later,
    bool own, double scale) {
  const OnDevice device(value);
  dependent = torch::stable::contiguous(dependent), head = torch::stable::contiguous(head);
  value = torch::stable::contiguous(value), bias = torch::stable::contiguous(bias), key_mask = contiguous(key_mask);
  Tensor out = torch::stable::empty_like(value), denominator = new_wide(value);
  with_element_type(value, [&](auto element) {
    using T = decltype(element);
    MultidimProblem<T> p = describe<T>(dependent, head, value, bias, key_mask, earlier, later, own, scale);
    p.out = data_of<T>(out), p.denominator = data_of<Wide<T>>(denominator);
    if (const int64_t blocks = multidim_blocks(p))
      LONGSPAN_LAUNCH((multidim_forward<T>), blocks, 32 * kMultidimWarps, multidim_memory<T>(), device.stream, p);
  });
  return {out, denominator};
}

// The sum of the rows of [B, L, D].
template <class W>
Tensor sum_of_rows(Tensor rows, void* stream) {
  const int64_t D = rows.size(2);
  int64_t count = rows.size(0) * rows.size(1);
  if (count == 0) return torch::stable::new_zeros(rows, {D}, rows.scalar_type());
  do {
    const int64_t groups = (count + kSummedRows - 1) / kSummedRows;
    Tensor sums = torch::stable::new_empty(rows, {groups, 1, D}, rows.scalar_type());
    if (const int64_t blocks = groups * ((D + 127) / 128))
      LONGSPAN_LAUNCH(
          (sum_rows<W>), blocks, 128, 0, stream, data_of<const W>(rows), count, static_cast<int>(D), data_of<W>(sums));
    rows = sums, count = groups;
  } while (count > 1);
  return torch::stable::view(rows, {D});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    Tensor grad_out, OptionalTensor grad_denominator, Tensor dependent, Tensor head, Tensor value, Tensor bias,
    Tensor out, Tensor denominator, OptionalTensor key_mask, bool earlier, bool later, bool own, double scale) {
  const OnDevice device(value);
  for (Tensor* tensor : {&grad_out, &dependent, &head, &value, &bias, &out, &denominator})
    *tensor = torch::stable::contiguous(*tensor);
  key_mask = contiguous(key_mask), grad_denominator = contiguous(grad_denominator);
  Tensor grad_dependent = torch::stable::empty_like(value), grad_head = torch::stable::empty_like(value),
         grad_value = torch::stable::empty_like(value), head_sums = new_wide(value), grad_bias = bias;
  with_element_type(value, [&](auto element) {
    using T = decltype(element);
    MultidimProblem<T> p = describe<T>(dependent, head, value, bias, key_mask, earlier, later, own, scale);
    p.grad_out = data_of<const T>(grad_out), p.forward_out = data_of<const T>(out);
    p.denominator = data_of<Wide<T>>(denominator), p.grad_denominator = data_of<const Wide<T>>(grad_denominator);
    p.grad_dependent = data_of<T>(grad_dependent), p.grad_head = data_of<T>(grad_head);
    p.grad_value = data_of<T>(grad_value), p.head_sums = data_of<Wide<T>>(head_sums);
    if (const int64_t blocks = multidim_blocks(p)) {
      constexpr int threads = 32 * kMultidimWarps;
      const size_t memory = multidim_memory<T>();
      LONGSPAN_LAUNCH((multidim_backward_queries<T>), blocks, threads, memory, device.stream, p);
      LONGSPAN_LAUNCH((multidim_backward_keys<T>), blocks, threads, memory, device.stream, p);
    }
    grad_bias = sum_of_rows<Wide<T>>(head_sums, device.stream);
  });
  return {grad_dependent, grad_head, grad_value, grad_bias};
}

}  // namespace
}  // namespace longspan::cuda

LONGSPAN_REGISTER(m) {
  m.impl("multidim_attention", TORCH_BOX(&longspan::cuda::forward));
  m.impl("multidim_attention_backward", TORCH_BOX(&longspan::cuda::backward));
}
