// Pieces of a scratch buffer.
#pragma once
#include <cstdint>

namespace longspan::cpu {

// Hands out pieces, each on a cache line of its own.
struct ScratchPieces {
  char* next;
  template <class T>
  T* take(int64_t count) {
    char* at = next;
    next += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
    return reinterpret_cast<T*>(at);
  }
};

}  // namespace longspan::cpu
