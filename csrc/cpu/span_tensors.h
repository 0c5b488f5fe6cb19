// From torch tensors to a problem of attention with soft spans.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "cpu/span.h"

namespace longspan::cpu {

struct SpanOptions {
  double scale, dropout_p;
  int64_t max_span;
  double ramp;
  bool zero_cache, bidirectional;
};

// The inputs, held in the form that the kernels want, and the problem that refers to them.
class __attribute__((visibility("hidden"))) SpanInputs {
  using Tensor = torch::stable::Tensor;
  using OptionalTensor = std::optional<Tensor>;

 public:
  SpanProblem problem{};
  const SpanKernels& kernels;

  SpanInputs(
      const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& position_key, const Tensor& span,
      const OptionalTensor& key_mask, const OptionalTensor& dropout_seed, const SpanOptions& options);
  SpanInputs(const SpanInputs&) = delete;

  int64_t width() const { return (problem.D + kernels.lanes - 1) / kernels.lanes * kernels.lanes; }
  bool is_double() const { return query_.scalar_type() == torch::headeronly::ScalarType::Double; }

  // Makes the table of position keys, which blocks of queries want.
  void build_table();

 private:
  Tensor query_, key_, value_, position_key_, span_;
  OptionalTensor key_mask_;
  std::vector<int64_t> reach_;
  OptionalTensor table_;

  void find_reach();
};

}  // namespace longspan::cpu
