// Register-blocked products of small tiles, the inner loops of every attention kernel here.
// Included inside an unnamed namespace between LONGSPAN_TARGET_BEGIN and _END, once per instruction set, after simd.h.

enum class Walk { rows, columns };  // how A(i, k) lies in memory: a[i * stride + k], or a[k * stride + i]

// C[i][0 .. Columns * Lanes) (+)= sum_k A(i, k) B[k][...], i < Rows, k < depth. C stays in registers over the loop.
template <class T, int Lanes, int Rows, int Columns, Walk walk, bool accumulate>
static inline __attribute__((always_inline)) void micro_gemm(
    const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t depth, T* c, int64_t c_stride) {
  using V = Simd<T, Lanes>;
  typename V::Vec sum[Rows][Columns];
#pragma GCC unroll 32
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
    for (int r = 0; r < Columns; ++r)
      sum[i][r] = accumulate ? V::load(c + i * c_stride + r * Lanes) : typename V::Vec{};
  for (int64_t k = 0; k < depth; ++k) {
    typename V::Vec row[Columns];
#pragma GCC unroll 8
    for (int r = 0; r < Columns; ++r) row[r] = V::load(b + k * b_stride + r * Lanes);
#pragma GCC unroll 32
    for (int i = 0; i < Rows; ++i) {
      const T x = walk == Walk::rows ? a[i * a_stride + k] : a[k * a_stride + i];
#pragma GCC unroll 8
      for (int r = 0; r < Columns; ++r) sum[i][r] += x * row[r];
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
    for (int r = 0; r < Columns; ++r) V::store(c + i * c_stride + r * Lanes, sum[i][r]);
}

// How many vectors of C's columns stay in registers together, and how many of its rows then fit beside them.
template <int Lanes>
struct RegisterTile {
  static constexpr int accumulators = Lanes == 16 ? 24 : 12;  // of 32 registers, or 16
  static constexpr int widest = Lanes == 16 ? 4 : 3;
  static constexpr int rows(int columns) { return accumulators / columns; }
};

// All `columns` vectors of a group of rows, in register tiles: Body is called with the number of vectors as a constant.
template <int Widest, class Body>
static inline __attribute__((always_inline)) void by_width(int first, int last, Body&& body) {
  for (int v = first; v < last;) {
    const int left = last - v;
    if (Widest >= 4 && (left == 4 || left >= 7)) {
      body(std::integral_constant<int, Widest >= 4 ? 4 : Widest>{}, v);
      v += 4;
    } else if (Widest >= 3 && left >= 3) {
      body(std::integral_constant<int, Widest >= 3 ? 3 : Widest>{}, v);
      v += 3;
    } else if (left >= 2) {
      body(std::integral_constant<int, 2>{}, v);
      v += 2;
    } else {
      body(std::integral_constant<int, 1>{}, v);
      v += 1;
    }
  }
}
