// Rows of numbers into columns, in blocks of vectors that stay in registers.
// Included inside an unnamed namespace between LONGSPAN_TARGET_BEGIN and _END, once per instruction set, after simd.h.

// One step of the butterfly: swaps the halves of every 2 * Step lanes between a (keeps its low ones) and b.
template <int Step, int Lanes, int... I>
static inline __attribute__((always_inline)) void exchange(auto& a, auto& b, std::integer_sequence<int, I...>) {
  const auto low = __builtin_shufflevector(a, b, (I & Step ? Lanes + I - Step : I)...);
  b = __builtin_shufflevector(a, b, (I & Step ? Lanes + I : I + Step)...);
  a = low;
}

template <int Step, int Lanes, class Vec>
static inline __attribute__((always_inline)) void exchange_all(Vec (&block)[Lanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < Lanes; ++i)
    if (!(i & Step)) exchange<Step, Lanes>(block[i], block[i + Step], std::make_integer_sequence<int, Lanes>{});
  if constexpr (2 * Step < Lanes) exchange_all<2 * Step, Lanes>(block);
}

// to[d * stride + i] = factor * rows[i * width + d] for i < count, d < width; count and width are whole vectors.
template <class T, int Lanes>
static inline void transpose_rows(const T* rows, int64_t width, int64_t count, T factor, T* to, int64_t stride) {
  using V = Simd<T, Lanes>;
  for (int64_t i = 0; i < count; i += Lanes)
    for (int64_t d = 0; d < width; d += Lanes) {
      typename V::Vec block[Lanes];
#pragma GCC unroll 16
      for (int j = 0; j < Lanes; ++j) block[j] = V::load(rows + (i + j) * width + d) * factor;
      exchange_all<1, Lanes>(block);
#pragma GCC unroll 16
      for (int j = 0; j < Lanes; ++j) V::store(to + (d + j) * stride + i, block[j]);
    }
}
