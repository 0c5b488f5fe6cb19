// Between scores by distance and scores by key: a tile whose lane i is moved by i rows, in log2(Lanes) choices a
// vector. Included inside an unnamed namespace between LONGSPAN_TARGET_BEGIN and _END, once per instruction set, after
// simd.h.

template <class T, int Lanes>
struct Shear {
  using V = Simd<T, Lanes>;
  using Vec = typename V::Vec;
  static constexpr int window = 2 * Lanes - 1;  // rows that `Lanes` moved rows come from

  // Lanes whose index has the bit `Step` take theirs from b, the others from a.
  template <int Step, int... I>
  static inline __attribute__((always_inline)) Vec choose(Vec a, Vec b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, (I & Step ? Lanes + I : I)...);
  }

  template <int Step, bool later>
  static inline __attribute__((always_inline)) void step(Vec (&rows)[window]) {
    constexpr auto lanes = std::make_integer_sequence<int, Lanes>{};
    if constexpr (later) {
#pragma GCC unroll 32
      for (int j = 0; j + Step < window; ++j) rows[j] = choose<Step>(rows[j], rows[j + Step], lanes);
    } else {
#pragma GCC unroll 32
      for (int j = window - 1; j >= Step; --j) rows[j] = choose<Step>(rows[j], rows[j - Step], lanes);
    }
    if constexpr (Step > 1) step<Step / 2, later>(rows);
  }

  // to[j][i] = from[j - i][i] for j < Lanes; reads from[1 - Lanes .. Lanes - 1].
  static inline void earlier(const T* from, T* to, int64_t stride) {
    Vec rows[window];
#pragma GCC unroll 32
    for (int j = 0; j < window; ++j) rows[j] = V::load(from + (j - Lanes + 1) * stride);
    step<Lanes / 2, false>(rows);
#pragma GCC unroll 32
    for (int j = 0; j < Lanes; ++j) V::store(to + j * stride, rows[j + Lanes - 1]);
  }

  // to[j][i] += from[j + i][i] for j < Lanes; reads from[0 .. 2 * Lanes - 2].
  static inline void add_later(const T* from, T* to, int64_t stride) {
    Vec rows[window];
#pragma GCC unroll 32
    for (int j = 0; j < window; ++j) rows[j] = V::load(from + j * stride);
    step<Lanes / 2, true>(rows);
#pragma GCC unroll 32
    for (int j = 0; j < Lanes; ++j) V::store(to + j * stride, V::load(to + j * stride) + rows[j]);
  }
};
