// The kernels of attention for float.
#include "cuda/launch.cuh"

namespace longspan::cuda {
LONGSPAN_LAUNCHERS(float)
}
