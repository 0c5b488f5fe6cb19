// longspan::seeded_dropout on a GPU, as models/longspan/ops/dropout.py defines it, bit for bit.
#include "common/dropout.h"

#include "cuda/operators.h"
#include "cuda/tensors.h"

namespace longspan::cuda {

constexpr int kDrawnTogether = 4096;  // elements that share their first counter: those of a block
constexpr int kDropoutThreads = 128;

template <class T>
struct DropoutProblem {
  int64_t count;
  const T* from;
  T* to;
  bool aligned;  // both, to 16 bytes
  const int64_t* seed;
  uint32_t threshold;
  Wide<T> keep_scale;
};

template <class T>
__global__ void __launch_bounds__(kDropoutThreads)
    seeded_dropout(const LONGSPAN_GRID_CONSTANT DropoutProblem<T> problem) {
  constexpr int step = Vector<T>::size;
  const int64_t begin = int64_t(blockIdx.x) * kDrawnTogether;
  const uint64_t seed = uint64_t(*problem.seed);
  const uint32_t stream = mix(mix(uint32_t(seed) + kCounterStep) ^ uint32_t(seed >> 32));
  const uint32_t word = next_counter(stream, uint32_t(blockIdx.x)), second = second_word(word);
  auto dropped = [&](T x, int place) {
    uint32_t drawn;
    draw(word, second, uint32_t(place), drawn);
    return drawn >= problem.threshold ? T(Wide<T>(x) * problem.keep_scale) : T(0.f);
  };
  for (int place = int(threadIdx.x) * step; place < kDrawnTogether; place += kDropoutThreads * step) {
    const T* from = problem.from + begin + place;
    T* to = problem.to + begin + place;
    if (problem.aligned && begin + place + step <= problem.count) {
      Vector<T> vector = load_vector(from);
#pragma unroll
      for (int i = 0; i < step; ++i) vector.at[i] = dropped(vector.at[i], place + i);
      *reinterpret_cast<Vector<T>*>(to) = vector;
    } else {
      for (int i = 0; i < step && begin + place + i < problem.count; ++i) to[i] = dropped(from[i], place + i);
    }
  }
}

namespace {

Tensor forward(Tensor x, Tensor seed, double p) {
  const OnDevice device(x);
  x = torch::stable::contiguous(x);
  Tensor out = torch::stable::empty_like(x);
  with_element_type(x, [&](auto element) {
    using T = decltype(element);
    DropoutProblem<T> problem{x.numel(), data_of<const T>(x), data_of<T>(out)};
    problem.aligned = (reinterpret_cast<uintptr_t>(problem.from) | reinterpret_cast<uintptr_t>(problem.to)) % 16 == 0;
    problem.seed = data_of<const int64_t>(seed), problem.threshold = uint32_t(p * 4294967296.0);
    problem.keep_scale = Wide<T>(1.0 / (1.0 - p));
    const int64_t blocks = (problem.count + kDrawnTogether - 1) / kDrawnTogether;
    STD_TORCH_CHECK(blocks < (int64_t(1) << 31), "seeded_dropout on CUDA: too many elements for one launch");
    if (blocks) LONGSPAN_LAUNCH((seeded_dropout<T>), blocks, kDropoutThreads, 0, device.stream, problem);
  });
  return out;
}

}  // namespace
}  // namespace longspan::cuda

LONGSPAN_REGISTER(m) { m.impl("seeded_dropout", TORCH_BOX(&longspan::cuda::forward)); }
