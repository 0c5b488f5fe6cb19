// Vectors of `Lanes` numbers by the compiler's vector extension: one source for AVX-512, AVX2, SSE and NEON.
// Included inside an unnamed namespace between LONGSPAN_TARGET_BEGIN and _END, once per instruction set.

template <class T>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = uint32_t;
};
template <>
struct BitsOf<double> {
  using type = uint64_t;
};

template <class T, int Lanes>
struct Simd {
  using Bits = typename BitsOf<T>::type;
  typedef T Vec __attribute__((vector_size(Lanes * sizeof(T))));
  typedef Bits Word __attribute__((vector_size(Lanes * sizeof(T))));
  typedef T Unaligned __attribute__((vector_size(Lanes * sizeof(T)), aligned(sizeof(T)), may_alias));

  typedef Bits UnalignedWord __attribute__((vector_size(Lanes * sizeof(T)), aligned(sizeof(T)), may_alias));

  static inline __attribute__((always_inline)) Word load_words(const Bits* p) {
    return *reinterpret_cast<const UnalignedWord*>(p);
  }
  static inline __attribute__((always_inline)) void store_words(Bits* p, Word x) {
    *reinterpret_cast<UnalignedWord*>(p) = x;
  }
  static inline __attribute__((always_inline)) Vec load(const T* p) { return *reinterpret_cast<const Unaligned*>(p); }
  static inline __attribute__((always_inline)) void store(T* p, Vec x) { *reinterpret_cast<Unaligned*>(p) = x; }
  static inline __attribute__((always_inline)) Vec all(T x) { return Vec{} + x; }
  static inline __attribute__((always_inline)) Vec max(Vec a, Vec b) {
#ifdef LONGSPAN_X86  // one instruction, where the compiler would make a comparison and a choice of the general form
    if constexpr (sizeof(Vec) == 64 && sizeof(T) == 4) return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
    if constexpr (sizeof(Vec) == 32 && sizeof(T) == 4) return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#endif
    return a > b ? a : b;
  }

  static inline __attribute__((always_inline)) T sum(Vec x) {
    T part[Lanes];
    store(part, x);
    for (int half = Lanes / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) part[i] += part[i + half];
    return part[0];
  }

  static inline __attribute__((always_inline)) Word lane_index() {
    Word index{};
    for (int i = 0; i < Lanes; ++i) index[i] = i;
    return index;
  }

  // 1 / x for normal numbers, relative error about 1e-7 in float.
  static inline __attribute__((always_inline)) Vec reciprocal(Vec x) {
#ifdef LONGSPAN_X86  // an estimate of 14 bits and one step of Newton, several times as fast as the division
    if constexpr (sizeof(Vec) == 64 && sizeof(T) == 4) {
      const Vec estimate = (Vec)_mm512_rcp14_ps((__m512)x);
      return estimate + estimate * (T(1) - x * estimate);
    }
#endif
    return T(1) / x;
  }

  // 2^x where the result is a normal number, relative error about 2e-7 in float.
  static inline __attribute__((always_inline)) Vec exp2_normal(Vec x) {
    if constexpr (sizeof(T) == 8) {
      Vec y{};
      for (int i = 0; i < Lanes; ++i) y[i] = std::exp2(x[i]);
      return y;
    } else {
      const Vec magic = all(12582912.f);  // 1.5 * 2^23 rounds to an integer when added
      const Vec rounded = x + magic;
      const Vec f = x - (rounded - magic);
      Vec p = all(1.5403530e-4f);
      p = p * f + 1.3333558e-3f;
      p = p * f + 9.6181291e-3f;
      p = p * f + 5.5504109e-2f;
      p = p * f + 2.4022651e-1f;
      p = p * f + 6.9314718e-1f;
      p = p * f + 1.f;
      return (Vec)((Word)p + ((Word)rounded << 23));
    }
  }

  // 2^x for x <= 0, relative error about 2e-7 in float; exactly 0 below the normal numbers and for -inf.
  static inline __attribute__((always_inline)) Vec exp2(Vec x) {
    if constexpr (sizeof(T) == 8) {
      return exp2_normal(x);
    } else {
      const Vec lowest = all(-126.f);
      const Vec y = exp2_normal(max(lowest, x));          // NaN stays NaN: the second operand wins
      return x >= lowest ? y : (x < lowest ? Vec{} : x);  // its sum of bits can turn a NaN into a number
    }
  }
};
