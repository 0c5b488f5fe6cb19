// From torch tensors to rows.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "cpu/rows.h"

namespace longspan::cpu {

inline Dtype dtype_of(const torch::stable::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case torch::headeronly::ScalarType::Float:
      return Dtype::f32;
    case torch::headeronly::ScalarType::BFloat16:
      return Dtype::bf16;
    case torch::headeronly::ScalarType::Half:
      return Dtype::f16;
    case torch::headeronly::ScalarType::Double:
      return Dtype::f64;
    default:
      STD_TORCH_CHECK(false, "float32, bfloat16, float16 or float64 wanted");
  }
}

inline torch::headeronly::ScalarType statistics_of(const torch::stable::Tensor& tensor) {
  return tensor.scalar_type() == torch::headeronly::ScalarType::Double ? torch::headeronly::ScalarType::Double
                                                                       : torch::headeronly::ScalarType::Float;
}

// The kernels want the last dimension contiguous; any other strides are theirs to follow.
inline torch::stable::Tensor with_rows(const torch::stable::Tensor& tensor) {
  return tensor.stride(3) == 1 || tensor.size(3) <= 1 ? tensor : torch::stable::contiguous(tensor);
}

inline Rows rows_of(const torch::stable::Tensor& tensor) {
  return {tensor.data_ptr(), dtype_of(tensor), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

}  // namespace longspan::cpu
