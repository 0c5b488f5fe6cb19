// From torch tensors to what kernels take, on the stable ABI alone: nothing here needs a torch that was built with
// CUDA.
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>

#include "cuda/attention.h"

namespace longspan::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The device of a tensor is the current one, and `stream` its current stream, as long as this lives.
struct OnDevice {
#ifdef LONGSPAN_EMULATED
  explicit OnDevice(const Tensor&) {}
  void* stream = nullptr;
#else
  explicit OnDevice(const Tensor& tensor)
      : guard(tensor.get_device_index()),
        stream(torch::stable::accelerator::getCurrentStream(tensor.get_device_index()).nativeHandle()) {}
  torch::stable::accelerator::DeviceGuard guard;
  void* stream;
#endif
};

inline ScalarType wide_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls body(a value of the tensor's element type).
template <class Body>
void with_element_type(const Tensor& tensor, Body&& body) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return body(float());
    case ScalarType::Half:
      return body(half());
    case ScalarType::BFloat16:
      return body(bf16());
    case ScalarType::Double:
      return body(double());
    default:
      STD_TORCH_CHECK(false, "float32, bfloat16, float16 or float64 wanted");
  }
}

// Kernels want the last dimension contiguous; any other strides are theirs to follow.
inline Tensor with_rows(const Tensor& tensor) {
  return tensor.stride(3) == 1 || tensor.size(3) <= 1 ? tensor : torch::stable::contiguous(tensor);
}
inline OptionalTensor contiguous(const OptionalTensor& tensor) {
  return tensor ? OptionalTensor(torch::stable::contiguous(*tensor)) : std::nullopt;
}

template <class T>
T* data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}
template <class T>
T* data_of(const OptionalTensor& tensor) {
  return tensor ? static_cast<T*>(tensor->data_ptr()) : nullptr;
}

template <class T>
Rows<T> rows_of(const Tensor& tensor) {
  return {static_cast<T*>(tensor.data_ptr()), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

// Whether every row can be read and written 16 bytes at a time.
template <class... Tensors>
bool aligned_rows(const Tensor& tensor, const Tensors&... others) {
  const int64_t step = 16 / int64_t(tensor.element_size());
  bool aligned = tensor.size(3) % step == 0 && reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0;
  for (int dim = 0; dim < 3; ++dim) aligned = aligned && tensor.stride(dim) % step == 0;
  if constexpr (sizeof...(others) > 0) aligned = aligned && aligned_rows(others...);
  return aligned;
}

// Sizes, key mask and dropout; the rest of the pattern is the operator's.
template <class T>
Problem<T> describe(
    const Tensor& query, int64_t num_keys, const OptionalTensor& key_mask, const OptionalTensor& dropout_seed,
    double scale, double dropout_p) {
  constexpr int64_t most = int64_t(1) << 30;
  STD_TORCH_CHECK(query.size(2) < most && num_keys < most, "attention on CUDA: at most 2^30 tokens");
  Problem<T> problem{};
  Pattern& pattern = problem.pattern;
  pattern.B = int(query.size(0)), pattern.H = int(query.size(1)), pattern.T = int(query.size(2));
  pattern.S = int(num_keys), pattern.heads = pattern.H, pattern.shares = 1;
  pattern.key_mask = data_of<const bool>(key_mask);
  problem.D = int(query.size(3));
  problem.scale = Wide<T>(scale);
  problem.dropout_seed = data_of<const int64_t>(dropout_seed);
  problem.dropout_threshold = uint32_t(dropout_p * 4294967296.0);
  problem.keep_scale = Wide<T>(1.0 / (1.0 - dropout_p));
  problem.last = true;
  return problem;
}

// Of a tensor [B, H, T, D]: statistics [shares B, H, T]; rows [shares B, H, T, D] of sums, that are to be written or
// begin as zeros.
inline Tensor new_wide(const Tensor& like, int64_t shares = 1) {
  return torch::stable::new_empty(like, {shares * like.size(0), like.size(1), like.size(2)}, wide_type(like));
}
inline Tensor new_rows(const Tensor& like, int64_t shares = 1) {
  return torch::stable::new_empty(
      like, {shares * like.size(0), like.size(1), like.size(2), like.size(3)}, wide_type(like));
}
inline Tensor new_sums(const Tensor& like, int64_t shares = 1) {
  return torch::stable::new_zeros(
      like, {shares * like.size(0), like.size(1), like.size(2), like.size(3)}, wide_type(like));
}

// `rows` is where a kernel wrote what belongs into `to`.
inline Tensor moved(const Tensor& rows, Tensor to) {
  if (rows.data_ptr() != to.data_ptr()) torch::stable::copy_(to, rows);
  return to;
}

}  // namespace longspan::cuda
