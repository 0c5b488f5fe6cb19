// The kernels of seeded_dropout: elements begin .. end of contiguous tensors.
#pragma once
#include <cstdint>

#include "common/dropout.h"
#include "cpu/rows.h"

namespace longspan::cpu {

using DropoutKernel = void (*)(const Dropout&, const void* from, void* to, Dtype, int64_t begin, int64_t end);

constexpr int64_t kDropoutRow = 4096;  // elements that share their first counter

// Compiled once per instruction set.
extern const DropoutKernel dropout_portable, dropout_avx2, dropout_avx512;

}  // namespace longspan::cpu
