// Attention dropout for a block of queries in vector lanes.
// Included inside an unnamed namespace between LONGSPAN_TARGET_BEGIN and _END, once per instruction set, after simd.h.

template <class T, int Lanes, int Q>
struct DropoutLanes {
  using V = Simd<T, Lanes>;
  const Dropout& dropout;
  uint32_t head_word = 0;  // hash of seed, batch and head
  uint32_t first[Q], second[Q];

  DropoutLanes(const Dropout& dropout, int64_t batch, int64_t head) : dropout(dropout) {
    if (active()) head_word = next_counter(next_counter(dropout.stream, uint32_t(batch)), uint32_t(head));
  }

  bool active() const { return dropout.active; }

  void set_query(int64_t lane, int64_t token) {
    first[lane] = next_counter(head_word, uint32_t(token));
    second[lane] = second_word(first[lane]);
  }

  // 1 / (1 - p) for kept pairs of key token `key` and the lanes from `lane` on, 0 for dropped ones.
  inline __attribute__((always_inline)) typename V::Vec keep(int64_t lane, int64_t key) const {
    typename V::Vec kept{};
    if constexpr (sizeof(T) == 4) {
      typename V::Word draws;
      draw(V::load_words(first + lane), V::load_words(second + lane), uint32_t(key), draws);
      kept = draws >= dropout.threshold ? V::all(T(dropout.keep_scale)) : typename V::Vec{};
    } else {
      for (int i = 0; i < Lanes; ++i) {
        uint32_t one;
        draw(first[lane + i], second[lane + i], uint32_t(key), one);
        kept[i] = one >= dropout.threshold ? T(dropout.keep_scale) : T(0);
      }
    }
    return kept;
  }
};
