// A tensor as kernels see it: rows of contiguous numbers.
#pragma once
#include <cstdint>

namespace longspan::cpu {

enum class Dtype { f32, bf16, f16, f64 };

// A tensor [B, H, tokens, D] whose last dimension is contiguous; strides in elements.
struct Rows {
  void* data = nullptr;
  Dtype dtype = Dtype::f32;
  int64_t batch = 0, head = 0, row = 0;
};

}  // namespace longspan::cpu
