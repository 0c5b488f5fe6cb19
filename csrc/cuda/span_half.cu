// The kernels of attention with soft spans for half.
#include "cuda/span_launch.cuh"

namespace longspan::cuda {
LONGSPAN_SPAN_LAUNCHERS(half)
}
