// The kernels of attention for double.
#include "cuda/launch.cuh"

namespace longspan::cuda {
LONGSPAN_LAUNCHERS(double)
}
