// Instruction sets in one binary: each kernel is compiled once per set, and the best the processor has runs.
#pragma once
#include <cstdint>

namespace longspan::cpu {

// Each includes those before it. avx512_bf16 and amx matter to bfloat16 forward kernels only.
enum class Isa : int64_t { portable = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3, amx = 4 };

Isa supported_isa();  // the best set of this processor
Isa isa();            // the set in use; lower than supported only where a test asked for it

}  // namespace longspan::cpu

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define LONGSPAN_X86 1
#endif

// Everything between the two words is compiled for the named features. Standard headers are included before.
#if defined(__clang__)
#define LONGSPAN_PRAGMA(text) _Pragma(#text)
#define LONGSPAN_TARGET_BEGIN(features) \
  LONGSPAN_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define LONGSPAN_TARGET_END _Pragma("clang attribute pop")
#else
#define LONGSPAN_PRAGMA(text) _Pragma(#text)
#define LONGSPAN_TARGET_BEGIN(features) _Pragma("GCC push_options") LONGSPAN_PRAGMA(GCC target(features))
#define LONGSPAN_TARGET_END _Pragma("GCC pop_options")
#endif
