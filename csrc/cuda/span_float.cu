// The kernels of attention with soft spans for float.
#include "cuda/span_launch.cuh"

namespace longspan::cuda {
LONGSPAN_SPAN_LAUNCHERS(float)
}
