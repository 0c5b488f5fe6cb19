// Angular hashing with the argmax fused into the projection, as ops/hashing.py defines it.
// Included inside an unnamed namespace between LONGSPAN_TARGET_BEGIN and _END, once per instruction set, after gemm.h,
// staging.h and transpose.h.
//
// 64 tokens in vector lanes; projections come in strips of 64 axes, of which only the largest and the smallest stay.

template <class T, int Lanes>
struct Hashing {
  using V = Simd<T, Lanes>;
  using Vec = typename V::Vec;
  using Word = typename V::Word;
  using Bits = typename V::Bits;
  static constexpr int Q = 64;
  static constexpr int64_t strip_axes = 64, slack = 24;
  static constexpr int columns = Lanes == 16 ? 4 : 2;
  static constexpr int rows = RegisterTile<Lanes>::rows(columns);

  const HashingProblem& problem;
  const HashingItem& item;
  const int64_t width;           // head size, padded to whole vectors
  T *tokens_t, *tokens, *strip;  // [width][64], [64][width], [64 + slack][64]

  static int64_t padded(int64_t n) { return (n + Lanes - 1) / Lanes * Lanes; }

  static size_t scratch_bytes(const HashingProblem& problem) {
    return size_t((2 * padded(problem.D) * Q + (strip_axes + slack) * Q) * sizeof(T) + 4 * 64);
  }

  Hashing(const HashingProblem& problem, const HashingItem& item, void* scratch)
      : problem(problem), item(item), width(padded(problem.D)) {
    ScratchPieces pieces{static_cast<char*>(scratch)};
    tokens_t = pieces.template take<T>(width * Q);
    tokens = pieces.template take<T>(width * Q);
    strip = pieces.template take<T>((strip_axes + slack) * Q);
  }

  void stage(int64_t begin, int64_t count) {
    read_rows(tokens, width, problem.query_key, item.batch, item.head, begin, 1, count, problem.D);
    for (int64_t i = count * width; i < Q * width; ++i) tokens[i] = 0;
    transpose_rows<T, Lanes>(tokens, width, Q, T(1), tokens_t, Q);
  }

  // strip[axis][token] for axes a .. b of a round.
  void project(const T* rotations, int64_t a, int64_t b) {
    const int64_t stride = problem.R * problem.columns;
    for (int64_t axis = a; axis < b; axis += rows)
      by_width<columns>(0, Q / Lanes, [&](auto width, int v) {
        micro_gemm<T, Lanes, rows, width(), Walk::columns, false>(
            rotations + axis, stride, tokens_t + v * Lanes, Q, problem.D, strip + (axis - a) * Q + v * Lanes, Q);
      });
  }

  // digit[token]: the first of the largest among p and -p over the axes lo .. hi of a round.
  void find_digits(const T* rotations, int64_t lo, int64_t hi, Bits* digit) {
    T most[Q], least[Q];
    Bits most_at[Q], least_at[Q];
    for (int i = 0; i < Q; ++i)
      most[i] = -T(__builtin_inf()), least[i] = T(__builtin_inf()), most_at[i] = least_at[i] = 0;
    for (int64_t a = lo; a < hi; a += strip_axes) {
      const int64_t b = a + strip_axes < hi ? a + strip_axes : hi;
      project(rotations, a, b);
      for (int lane = 0; lane < Q; lane += Lanes) {
        Vec high = V::load(most + lane), low = V::load(least + lane);
        Word high_at = V::load_words(most_at + lane), low_at = V::load_words(least_at + lane);
        for (int64_t axis = a; axis < b; ++axis) {
          const Vec p = V::load(strip + (axis - a) * Q + lane);
          const Word here = Word{} + Bits(axis - lo);
          high_at = p > high ? here : high_at;
          high = p > high ? p : high;
          low_at = p < low ? here : low_at;
          low = p < low ? p : low;
        }
        V::store(most + lane, high);
        V::store(least + lane, low);
        V::store_words(most_at + lane, high_at);
        V::store_words(least_at + lane, low_at);
      }
    }
    for (int i = 0; i < Q; ++i) digit[i] = most[i] >= -least[i] ? most_at[i] : Bits(hi - lo) + least_at[i];
  }

  void run() {
    const T* of_head = static_cast<const T*>(problem.rotations) + item.head * problem.D * problem.R * problem.columns;
    Bits digit[Q];
    for (int64_t begin = item.begin; begin < item.end; begin += Q) {
      const int64_t count = item.end - begin < Q ? item.end - begin : Q;
      stage(begin, count);
      for (int64_t r = 0; r < problem.R; ++r) {
        int64_t* to = problem.buckets + ((item.batch * problem.H + item.head) * problem.R + r) * problem.T + begin;
        int64_t lo = 0, weight = 1;
        for (int64_t i = 0; i < count; ++i) to[i] = 0;
        for (int64_t f = 0; f < problem.num_factors; ++f) {
          const int64_t hi = lo + problem.factors[f] / 2;
          find_digits(of_head + r * problem.columns, lo, hi, digit);
          for (int64_t i = 0; i < count; ++i) to[i] += weight * int64_t(digit[i]);
          lo = hi;
          weight *= problem.factors[f];
        }
        for (int64_t i = 0; problem.key_mask && i < count; ++i)
          if (!problem.key_mask[item.batch * problem.T + begin + i]) to[i] = problem.masked_bucket;
      }
    }
  }

  static void start(const HashingProblem& problem, const HashingItem& item, void* scratch) {
    Hashing(problem, item, scratch).run();
  }
  static constexpr HashingKernel kernel() { return {&scratch_bytes, &start}; }
};
