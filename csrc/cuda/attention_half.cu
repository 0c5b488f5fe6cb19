// The kernels of attention for half.
#include "cuda/launch.cuh"

namespace longspan::cuda {
LONGSPAN_LAUNCHERS(half)
}
