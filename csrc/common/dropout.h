// Which (query, key) pairs attention dropout keeps: the arithmetic of models/longspan/ops/dropout.py, bit for bit.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define LONGSPAN_INLINE __host__ __device__ __forceinline__
#else
#define LONGSPAN_INLINE inline __attribute__((always_inline))
#endif

namespace longspan {

struct Dropout {
  bool active = false;
  uint32_t stream = 0;     // hash of the seed
  uint32_t threshold = 0;  // a draw below it drops the pair
  double keep_scale = 1;   // 1 / (1 - p)
};

// lowbias32, in place; Word is uint32_t or a vector of them (by reference: clang refuses to pass vectors by value to
// functions compiled without their instruction set).
template <class Word>
LONGSPAN_INLINE void mix_in_place(Word& word) {
  word = word ^ (word >> 16);
  word = word * 0x7FEB352Du;
  word = word ^ (word >> 15);
  word = word * 0x846CA68Bu;
  word = word ^ (word >> 16);
}

LONGSPAN_INLINE uint32_t mix(uint32_t word) {
  mix_in_place(word);
  return word;
}

constexpr uint32_t kCounterStep = 0x9E3779B9u;

LONGSPAN_INLINE uint32_t next_counter(uint32_t word, uint32_t counter) { return mix((word + kCounterStep) ^ counter); }

inline Dropout make_dropout(int64_t seed, double p) {
  Dropout dropout;
  dropout.active = true;
  dropout.stream = mix(mix(uint32_t(seed) + kCounterStep) ^ uint32_t(uint64_t(seed) >> 32));
  dropout.threshold = uint32_t(p * 4294967296.0);
  dropout.keep_scale = 1.0 / (1.0 - p);
  return dropout;
}

// All draws of a query share two words: next_counter(hash of seed, batch and head; query), and its second_word.
LONGSPAN_INLINE uint32_t second_word(uint32_t first) { return mix(first + kCounterStep); }

template <class Word, class Key>
LONGSPAN_INLINE void draw(const Word& first, const Word& second, const Key& key, Word& out) {
  out = first ^ key;
  mix_in_place(out);
  out += second;
  mix_in_place(out);
}

}  // namespace longspan
