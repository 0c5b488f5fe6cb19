// Where operators are registered. The emulator of the tests runs the same kernels on the CPU, in a namespace of its
// own.
#pragma once
#include <torch/csrc/stable/library.h>

#ifdef LONGSPAN_EMULATED
#define LONGSPAN_REGISTER(m) STABLE_TORCH_LIBRARY_IMPL(longspan_emulated, CPU, m)
#else
#define LONGSPAN_REGISTER(m) STABLE_TORCH_LIBRARY_IMPL(longspan, CUDA, m)
#endif
