// From torch tensors to a WindowsProblem, run, and back: shared by the operators that are one.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <utility>

#include "cpu/tensors.h"
#include "cpu/windows.h"

namespace longspan::cpu {

using OptionalTensor = std::optional<torch::stable::Tensor>;

inline OptionalTensor contiguous(const OptionalTensor& tensor) {
  return tensor ? OptionalTensor(torch::stable::contiguous(*tensor)) : std::nullopt;
}

// Fills in sizes, key mask and dropout; the tensors given must outlive the problem.
void describe(
    WindowsProblem& problem, const torch::stable::Tensor& query, const OptionalTensor& key_mask,
    const OptionalTensor& dropout_seed, double dropout_p);

// (out, lse); `problem` is complete but for them.
std::tuple<torch::stable::Tensor, torch::stable::Tensor> attend(
    WindowsProblem problem, const torch::stable::Tensor& query);

// Gradients of query, value and, where it is not shared, key; `problem` is complete but for them.
std::tuple<torch::stable::Tensor, torch::stable::Tensor, OptionalTensor> attend_backward(
    WindowsProblem problem, torch::stable::Tensor grad_out, OptionalTensor grad_lse, const torch::stable::Tensor& query,
    const OptionalTensor& key, const torch::stable::Tensor& value, torch::stable::Tensor out,
    torch::stable::Tensor lse);

}  // namespace longspan::cpu
