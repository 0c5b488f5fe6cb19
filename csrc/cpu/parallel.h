// Work items on all threads.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>

namespace longspan::cpu {

// Calls body(i, scratch) for i < count, whoever is free taking the next; each thread has its own scratch.
template <class Body>
void run_items(const char* name, size_t count, size_t scratch_bytes, Body&& body) {
  if (count == 0) return;
  const size_t bytes = (scratch_bytes + 63) / 64 * 64;
  std::atomic<size_t> next{0};
  std::atomic<bool> out_of_memory{false};
  const int64_t workers = std::min<int64_t>(torch::stable::get_num_threads(), int64_t(count));
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      const std::unique_ptr<void, decltype(&std::free)> scratch(std::aligned_alloc(64, bytes), &std::free);
      if (!scratch) {
        out_of_memory = true;
        return;
      }
      for (size_t i; (i = next.fetch_add(1)) < count;) body(i, scratch.get());
    }
  });
  STD_TORCH_CHECK(!out_of_memory, name, ": no memory for ", bytes, " bytes of scratch a thread");
}

}  // namespace longspan::cpu
