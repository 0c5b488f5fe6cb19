// Attention of chunks to neighbouring chunks, in an order of the tokens or in several ("rounds"), as its kernels see
// it. LSH attention sorts tokens by bucket; block-local attention is the same in the tokens' own order.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/dropout.h"
#include "cpu/rows.h"

namespace longspan::cpu {

struct WindowsProblem {
  int64_t B, H, R, T, D;
  const int32_t* order = nullptr;    // [B, H, R, T]: the token at each slot; none: slot = token, and R = 1
  const int32_t* first = nullptr;    // [B, H, R, T]: the slot at which the bucket of each slot begins
  const int32_t* slot_of = nullptr;  // [B, H, R, T]: the slot of each token; to deduplicate

  // Who sees whom.
  int64_t chunk;          // slots of a chunk; the last of a round may be short
  int64_t before, after;  // neighbouring chunks
  bool wrap = false;      // neighbours count modulo the chunks of all rounds
  bool causal = false;
  bool same_bucket = false;
  int64_t reach = -1;        // at most so many slots back; -1: no limit
  bool shared = false;       // keys are the queries at unit length, a token does not see itself; alone, it is its value
  bool deduplicate = false;  // a key counts once however often it is found
  const bool* key_mask = nullptr;  // [B, T] or none

  double scale = 1;
  Dropout dropout;
  Rows query, key, value;  // key only where it is not shared
  Rows out;                // forward: float (double for double), and the running result of the rounds
  void* lse;               // [B, H, T], float (double for double)
  void* sum = nullptr;     // forward: [B, H, T] of scratch, as lse
  // Backward only. All gradients are sums: zero at the start, float (double for double).
  Rows grad_out, grad_query, grad_key, grad_value;
  const void* delta = nullptr;  // [B, H, T]: sum of out * grad_out, minus the gradient of lse

  int64_t chunks() const { return (T + chunk - 1) / chunk; }  // of a round
  int64_t at(int64_t batch, int64_t head, int64_t token) const { return (batch * H + head) * T + token; }
  // Where [B, H, R, T] holds a slot, which counts through all rounds.
  int64_t at_slot(int64_t batch, int64_t head, int64_t slot) const { return (batch * H + head) * R * T + slot; }

  // The chunk `offset` chunks from `own`, both counted through all rounds; -1: none.
  int64_t neighbour(int64_t own, int64_t offset) const {
    const int64_t per_round = chunks(), total = R * per_round, other = own + offset;
    if (wrap) {
      if (offset > total || -offset > total) return own;  // as in the original
      return ((other % total) + total) % total;
    }
    return other >= 0 && other < total && other / per_round == own / per_round ? other : -1;
  }
  bool leaves_round(int64_t own) const {  // a chunk with neighbours in other rounds
    const int64_t place = own % chunks();
    return wrap && (place < before || place + after >= chunks());
  }
};

// Some chunks of one round of one head; they count through all rounds.
struct WindowsItem {
  int64_t batch, head;
  std::vector<int64_t> chunks;
};

struct WindowsKernels {
  size_t (*scratch_bytes)(const WindowsProblem&, bool backward);
  void (*forward)(const WindowsProblem&, const WindowsItem&, void* scratch);
  void (*backward)(const WindowsProblem&, const WindowsItem&, void* scratch);
};

constexpr int kWindowQueries = 64;  // queries of one block

// Compiled once per instruction set.
const WindowsKernels& windows_portable();
const WindowsKernels& windows_portable_f64();
const WindowsKernels& windows_avx2();
const WindowsKernels& windows_avx512();

// Runs on all threads, with the kernels of the instruction set in use.
void windows_forward(const WindowsProblem& problem);
void windows_backward(const WindowsProblem& problem);

}  // namespace longspan::cpu
