// The kernels of attention with soft spans for bf16.
#include "cuda/span_launch.cuh"

namespace longspan::cuda {
LONGSPAN_SPAN_LAUNCHERS(bf16)
}
