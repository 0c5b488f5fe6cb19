// The kernels of attention for bf16.
#include "cuda/launch.cuh"

namespace longspan::cuda {
LONGSPAN_LAUNCHERS(bf16)
}
