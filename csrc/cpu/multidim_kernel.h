// Multi-dimensional attention, as ops/multidim.py defines it: features in vector lanes, tokens of a sequence in a loop.
// Included inside an unnamed namespace between LONGSPAN_TARGET_BEGIN and _END, once per instruction set, after simd.h
// and staging.h.
//
// With x = exp(2 (key + query) / c) and r = 1 / (1 + x): tanh = 1 - 2 r, and its derivative is 4 x r^2. x is a product
// of one number of the key and one of the query, so a pair costs one exponential, that of the score. Where such a
// number would leave the range of T, the pair computes x from the sum instead.
//
// Padding neither is seen nor sees: a sequence is staged without it, and the loops know no masks.

template <class T, int Lanes>
struct Multidim {
  using V = Simd<T, Lanes>;
  using Vec = typename V::Vec;
  using Word = typename V::Word;
  static constexpr double log2e = 1.4426950408889634;
  static constexpr T limit = 60;  // of log2 x, and of log2 of its factors: 1 + x is finite, beyond it the tanh is 1

  const MultidimProblem& problem;
  const MultidimItem& item;
  const int64_t width;   // features, padded to whole vectors
  const T inner, outer;  // log2 x = inner * (key + query); score = outer * tanh, in powers of 2
  int64_t count = 0;     // tokens of the sequence that are no padding
  int64_t* tokens;       // [L], their places
  T *keys, *queries, *values, *sums, *shares, *deltas;  // [L][width]
  T *row, *bias_sums;                                   // [width]

  static int64_t padded(int64_t n) { return (n + Lanes - 1) / Lanes * Lanes; }

  static size_t scratch_bytes(const MultidimProblem& problem, int64_t features) {
    const int64_t numbers = (6 * problem.L + 2) * padded(features);
    return size_t(numbers * int64_t(sizeof(T)) + problem.L * int64_t(sizeof(int64_t)) + 10 * 64);
  }

  Multidim(const MultidimProblem& problem, const MultidimItem& item, void* scratch)
      : problem(problem),
        item(item),
        width(padded(item.features)),
        inner(T(2 * log2e / problem.scale)),
        outer(T(log2e * problem.scale)) {
    ScratchPieces pieces{static_cast<char*>(scratch)};
    tokens = pieces.template take<int64_t>(problem.L);
    for (T** piece : {&keys, &queries, &values, &sums, &shares, &deltas})
      *piece = pieces.template take<T>(problem.L * width);
    row = pieces.template take<T>(width);
    bias_sums = pieces.template take<T>(width);
  }

  char* at(const Rows& rows, int64_t batch, int64_t token) const {
    return row_of(rows, batch, 0, token) + item.feature * element_size(rows.dtype);
  }

  void find_tokens(int64_t batch) {
    count = 0;
    for (int64_t t = 0; t < problem.L; ++t)
      if (!problem.key_mask || problem.key_mask[batch * problem.L + t]) tokens[count++] = t;
  }

  void read(T* to, const Rows& rows, int64_t batch) const {
    for (int64_t i = 0; i < count; ++i, to += width) {
      read_row(to, at(rows, batch, tokens[i]), rows.dtype, item.features);
      for (int64_t d = item.features; d < width; ++d) to[d] = 0;
    }
  }

  void write(const Rows& rows, int64_t batch, const T* from, T factor) const {
    int64_t i = 0;
    for (int64_t t = 0; t < problem.L; ++t) {
      char* to = at(rows, batch, t);
      if (i < count && tokens[i] == t)
        write_row(to, from + i++ * width, factor, rows.dtype, item.features);
      else
        memset(to, 0, size_t(item.features * element_size(rows.dtype)));
    }
  }

  void stage(int64_t batch) {
    find_tokens(batch);
    read(keys, problem.dependent, batch);
    read(queries, problem.head, batch);
    read(values, problem.value, batch);
    const T* bias = static_cast<const T*>(problem.bias) + item.feature;
    for (int64_t i = 0; i < count; ++i)
      for (int64_t d = 0; d < item.features; ++d) queries[i * width + d] += bias[d];
  }

  // Keys and queries of one vector of features become the factors of x. False where they would leave the range.
  bool factorise(int64_t v) {
    Word inside = ~Word{};
    for (T* rows : {keys + v, queries + v})
      for (int64_t i = 0; i < count; ++i) {
        const Vec x = V::load(rows + i * width) * inner;
        inside &= (Word)(x <= limit) & (Word)(x >= -limit);  // NaN is not inside
        V::store(rows + i * width, x);
      }
    for (int lane = 0; lane < Lanes; ++lane)
      if (!inside[lane]) return false;
    for (T* rows : {keys + v, queries + v})
      for (int64_t i = 0; i < count; ++i) V::store(rows + i * width, V::exp2_normal(V::load(rows + i * width)));
    return true;
  }

  struct Pair {
    Vec x, r, weight;
  };

  template <bool Factors>
  inline __attribute__((always_inline)) Pair pair(Vec key, Vec query) const {
    Pair p;
    if constexpr (Factors) {
      p.x = key * query;
    } else {
      Vec sum = key + query;
      sum = sum > limit ? V::all(limit) : sum;
      p.x = V::exp2(sum < -limit ? V::all(-limit) : sum);
    }
    p.r = V::reciprocal(p.x + T(1));
    p.weight = V::exp2_normal(outer - 2 * outer * p.r);
    return p;
  }

  // Calls body(token) for the tokens before, after and at `own`, as wanted.
  template <class Body>
  inline __attribute__((always_inline)) void around(int64_t own, bool before, bool after, Body&& body) const {
    const int64_t begin = before ? 0 : own, end = after ? count : own + 1;
    const int64_t first = problem.own ? end : own;
    for (int64_t i = begin; i < first; ++i) body(i);
    for (int64_t i = first + 1; i < end; ++i) body(i);
  }

  template <bool Factors>
  void attend(int64_t v) {
    for (int64_t i = 0; i < count; ++i) {
      const Vec query = V::load(queries + i * width + v);
      Vec numerator{}, denominator{};
      around(i, problem.earlier, problem.later, [&](int64_t j) __attribute__((always_inline)) {
        const Vec weight = pair<Factors>(V::load(keys + j * width + v), query).weight;
        denominator += weight;
        numerator += weight * V::load(values + j * width + v);
      });
      V::store(sums + i * width + v, denominator);
      V::store(queries + i * width + v, denominator == 0 ? Vec{} : numerator / denominator);
    }
  }

  // Weights times shares are the probabilities times the gradient of `out`. Leaves the gradients of keys and values in
  // their places, those of queries in sums; the former and the latter want a factor of 4 yet.
  template <bool Factors>
  void differentiate(int64_t v) {
    for (int64_t j = 0; j < count; ++j) {
      const Vec key = V::load(keys + j * width + v), value = V::load(values + j * width + v);
      Vec grad_key{}, grad_value{};
      around(j, problem.later, problem.earlier, [&](int64_t i) __attribute__((always_inline)) {
        const int64_t at = i * width + v;
        const Pair p = pair<Factors>(key, V::load(queries + at));
        const Vec share = V::load(shares + at);
        grad_value += p.weight * share;
        const Vec grad_score = p.weight * (share * value - V::load(deltas + at));
        const Vec grad_sum = grad_score * (p.x * p.r * p.r);
        grad_key += grad_sum;
        V::store(sums + at, V::load(sums + at) + grad_sum);
      });
      V::store(keys + j * width + v, grad_key);
      V::store(values + j * width + v, grad_value);
    }
  }

  void forward(int64_t batch) {
    stage(batch);
    for (int64_t v = 0; v < width; v += Lanes) factorise(v) ? attend<true>(v) : attend<false>(v);
    write(problem.out, batch, queries, T(1));
    write(problem.denominator, batch, sums, T(1));
  }

  // shares = grad_out / denominator, deltas = shares * out - grad_denominator; 0 where a query sees nothing.
  void stage_gradients(int64_t batch) {
    read(sums, problem.denominator, batch);
    read(shares, problem.grad_out, batch);
    read(deltas, problem.out, batch);
    for (int64_t at = 0; at < count * width; ++at) {
      shares[at] = sums[at] == 0 ? T(0) : shares[at] / sums[at];
      deltas[at] *= shares[at];
    }
    if (problem.grad_denominator.data == nullptr) return;
    for (int64_t i = 0; i < count; ++i) {
      read_row(row, at(problem.grad_denominator, batch, tokens[i]), problem.grad_denominator.dtype, item.features);
      for (int64_t d = 0; d < item.features; ++d) deltas[i * width + d] -= sums[i * width + d] == 0 ? T(0) : row[d];
    }
  }

  void backward(int64_t batch) {
    stage(batch);
    stage_gradients(batch);
    for (int64_t at = 0; at < count * width; ++at) sums[at] = 0;
    for (int64_t v = 0; v < width; v += Lanes) factorise(v) ? differentiate<true>(v) : differentiate<false>(v);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t d = 0; d < width; ++d) bias_sums[d] += sums[i * width + d];
    write(problem.grad_dependent, batch, keys, T(4));
    write(problem.grad_head, batch, sums, T(4));
    write(problem.grad_value, batch, values, T(1));
  }

  static void run_forward(const MultidimProblem& problem, const MultidimItem& item, void* scratch) {
    Multidim run(problem, item, scratch);
    for (int64_t batch = item.begin; batch < item.end; ++batch) run.forward(batch);
  }

  static void run_backward(const MultidimProblem& problem, const MultidimItem& item, void* scratch) {
    Multidim run(problem, item, scratch);
    for (int64_t d = 0; d < run.width; ++d) run.bias_sums[d] = 0;
    for (int64_t batch = item.begin; batch < item.end; ++batch) run.backward(batch);
    T* to = static_cast<T*>(problem.grad_bias) + item.group * problem.D + item.feature;
    for (int64_t d = 0; d < item.features; ++d) to[d] = 4 * run.bias_sums[d];
  }

  static constexpr MultidimKernels kernels() { return {&scratch_bytes, &run_forward, &run_backward}; }
};
