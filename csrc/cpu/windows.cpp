// Which chunks run when, on which threads: what all attention of chunks to neighbouring chunks shares.
#include "cpu/windows.h"

#include <algorithm>

#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace longspan::cpu {
namespace {

const WindowsKernels& kernels_for(const WindowsProblem& problem) {
  if (problem.query.dtype == Dtype::f64) return windows_portable_f64();
  switch (isa()) {
    case Isa::portable:
      return windows_portable();
    case Isa::avx2:
      return windows_avx2();
    default:
      return windows_avx512();
  }
}

void run(const WindowsProblem& problem, const std::vector<WindowsItem>& items, bool backward) {
  const WindowsKernels& kernels = kernels_for(problem);
  const auto kernel = backward ? kernels.backward : kernels.forward;
  run_items("attention", items.size(), kernels.scratch_bytes(problem, backward), [&](size_t i, void* scratch) {
    kernel(problem, items[i], scratch);
  });
}

// The chunks of a round for which `wanted(run, chunk)` holds, `length` at a time, for every head.
template <class Wanted>
std::vector<WindowsItem> runs_of(const WindowsProblem& problem, int64_t round, int64_t length, Wanted&& wanted) {
  std::vector<WindowsItem> items;
  const int64_t chunks = problem.chunks();
  for (int64_t batch = 0; batch < problem.B; ++batch)
    for (int64_t head = 0; head < problem.H; ++head)
      for (int64_t begin = 0; begin < chunks; begin += length) {
        WindowsItem item{batch, head, {}};
        for (int64_t chunk = begin; chunk < std::min(begin + length, chunks); ++chunk)
          if (wanted(begin / length, round * chunks + chunk)) item.chunks.push_back(round * chunks + chunk);
        if (!item.chunks.empty()) items.push_back(std::move(item));
      }
  return items;
}

}  // namespace

// A round meets every query once: its runs write different rows, and the next round takes up their results.
void windows_forward(const WindowsProblem& problem) {
  const int64_t total = problem.B * problem.H * problem.chunks(), threads = torch::stable::get_num_threads();
  // Long runs stage fewer chunks twice; short ones keep all threads busy.
  const int64_t least = 4 * (problem.before + problem.after) + 1;
  const int64_t length = std::max<int64_t>(1, std::min(std::max<int64_t>(least, 32), total / (4 * threads)));
  for (int64_t round = 0; round < problem.R; ++round)
    run(problem, runs_of(problem, round, length, [](int64_t, int64_t) { return true; }), false);
}

// A run at least as long as its window shares tokens with its two neighbours only. So in each round first all even
// runs, then all odd ones, then, head by head, the chunks whose neighbours lie in other rounds: nobody writes where
// another does, and every sum has one order, whatever the threads do.
void windows_backward(const WindowsProblem& problem) {
  const int64_t length = std::max<int64_t>(problem.before + problem.after, 16);
  for (int64_t round = 0; round < problem.R; ++round) {
    for (const int64_t parity : {0, 1}) {
      auto inside = [&](int64_t i, int64_t chunk) { return i % 2 == parity && !problem.leaves_round(chunk); };
      run(problem, runs_of(problem, round, length, inside), true);
    }
    auto across = [&](int64_t, int64_t chunk) { return problem.leaves_round(chunk); };
    run(problem, runs_of(problem, round, std::max<int64_t>(1, problem.chunks()), across), true);
  }
}

}  // namespace longspan::cpu
