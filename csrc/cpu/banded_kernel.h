// Banded attention of one item (a run of queries of one chain), forward and backward.
// Included inside an unnamed namespace between LONGSPAN_TARGET_BEGIN and _END, once per instruction set, after gemm.h.
//
// A block of 48 queries walks over the keys of its band in tiles. Scores lie transposed, strip[key][query]: queries in
// vector lanes, so softmax needs no sums across lanes, the window's edge is a range of lanes that moves by one from key
// to key, and all products below read one operand by broadcast and the other by whole rows.
// Scores are in units of log 2 (exp(x) = 2^(x log2 e)); the running maximum and sum per query are as in Milakov and
// Gimelshein 2018.

template <class T, int Lanes>
struct Banded : BandedRun {
  using V = Simd<T, Lanes>;
  using Vec = typename V::Vec;
  using Word = typename V::Bits;
  static constexpr int Q = kQueryBlock;
  static constexpr int query_vectors = Q / Lanes;
  static constexpr int score_columns = 3;  // vectors of queries in one register tile of scores
  static constexpr int score_rows = RegisterTile<Lanes>::rows(score_columns);
  static constexpr int64_t key_tile = 96;  // strip and rows of a tile about fill the first cache
  static constexpr T log2e = T(1.4426950408889634), ln2 = T(0.6931471805599453);
  static_assert(Q % Lanes == 0 && key_tile % score_rows == 0);

  const int64_t D, width;  // head size, and that padded to whole vectors
  DropoutLanes<T, Lanes, Q> dropout;

  // Scratch.
  T *keys, *values;                       // [keys_end - keys_begin + slack][width]
  T *queries_t, *strip;                   // [width][48], [key_tile + slack][48]
  T* sums;                                // [48][width]
  T *grad_keys, *grad_values;             // as keys
  T *queries, *grads, *grads_t, *strip2;  // [48][width], [48][width], [width][48], as strip
  T row_max[Q], row_sum[Q], row_lse[Q], row_delta[Q];

  static int64_t padded(int64_t n) { return (n + Lanes - 1) / Lanes * Lanes; }
  static constexpr int64_t slack = 16;  // rows that a register tile may read past the last key

  static size_t scratch_bytes(const BandedProblem& problem, int64_t num_keys, bool backward) {
    const int64_t width = padded(problem.D), rows = num_keys + slack, strips = (key_tile + slack) * Q;
    const int64_t forward = 2 * rows * width + width * Q + strips + Q * width;
    const int64_t more = 2 * rows * width + 2 * Q * width + width * Q + strips;
    return (forward + (backward ? more : 0)) * sizeof(T) + 16 * 64;
  }

  Banded(const BandedProblem& problem, const BandedItem& item, void* scratch, bool backward)
      : BandedRun(problem, item),
        D(problem.D),
        width(padded(problem.D)),
        dropout(problem.dropout, item.batch, item.head) {
    const int64_t rows = num_keys() + slack, strip_size = (key_tile + slack) * Q;
    ScratchPieces pieces{static_cast<char*>(scratch)};
    auto take = [&pieces](int64_t count) { return pieces.template take<T>(count); };
    keys = take(rows * width);
    values = take(rows * width);
    queries_t = take(width * Q);
    strip = take(strip_size);
    sums = take(Q * width);
    if (backward) {
      grad_keys = take(rows * width);
      grad_values = take(rows * width);
      queries = take(Q * width);
      grads = take(Q * width);
      grads_t = take(width * Q);
      strip2 = take(strip_size);
      for (int64_t i = 0; i < rows * width; ++i) grad_keys[i] = grad_values[i] = 0;
    }
    stage(keys, problem.key);
    stage(values, problem.value);
  }

  void stage(T* to, const Rows& rows) {
    const int64_t count = num_keys();
    read_rows(to, width, rows, item.batch, item.head, key_token(keys_begin), chain.step, count, D);
    for (int64_t i = count * width; i < (count + slack) * width; ++i) to[i] = 0;
  }

  // to[d][query] = factor * rows[query][d], zero past the last query; `staged` is scratch.
  void stage_transposed(T* to, const Rows& rows, int64_t first, int64_t count, T factor, T* staged) {
    read_rows(staged, width, rows, item.batch, item.head, query_token(first), chain.step, count, D);
    for (int64_t i = count * width; i < Q * width; ++i) staged[i] = 0;
    transpose_rows<T, Lanes>(staged, width, Q, factor, to, Q);
  }

  // One block of queries: where it stands, and which keys it may see.
  struct Block {
    int64_t first, count;  // queries of the chain
    int64_t place;         // of the first query
    int64_t begin, end;    // keys
  };

  Block block_at(int64_t first) const {
    Block block;
    block.first = first;
    block.count = item.end - first < Q ? item.end - first : Q;
    block.place = first + chain.shift;
    block.begin = clamp(block.place - left);
    block.end = clamp(block.place + block.count + right);
    return block;
  }

  // Keys visible to some query of lanes [lane, lane + lanes) of the block, within the tile [k0, k1).
  void keys_of(const Block& block, int64_t lane, int64_t lanes, int64_t k0, int64_t k1, int64_t& a, int64_t& b) const {
    a = block.place + lane - left > k0 ? block.place + lane - left : k0;
    b = block.place + lane + lanes + right < k1 ? block.place + lane + lanes + right : k1;
    if (b < a) b = a;
  }

  // strip[key - k0][query] = sum_d rows[key][d] columns_t[d][query], where any pair of a register tile is in the band.
  void scores(const Block& block, int64_t k0, int64_t k1, const T* rows, const T* columns_t, T* to) const {
    for (int64_t k = k0; k < k1; k += score_rows) {
      const int64_t low = k - block.place - right, high = k + score_rows - 1 - block.place + left;
      if (high < 0 || low >= block.count) continue;
      const int first = low > 0 ? int(low / Lanes) : 0;
      const int last = int((high < block.count - 1 ? high : block.count - 1) / Lanes) + 1;
      const T* a = rows + (k - keys_begin) * width;
      by_width<score_columns>(first, last, [&](auto columns, int v) {
        micro_gemm<T, Lanes, score_rows, columns(), Walk::rows, false>(
            a, width, columns_t + v * Lanes, Q, D, to + (k - k0) * Q + v * Lanes, Q);
      });
    }
  }

  // Calls edge(key) for the tile's keys that only part of the lanes sees, inner(a, b) for the run that all of them see.
  template <class Edge, class Inner>
  inline __attribute__((always_inline)) void over_keys(
      const Block& block, int64_t lane, int64_t k0, int64_t k1, Edge&& edge, Inner&& inner) const {
    const int64_t a = block.place + lane + Lanes - 1 - left, b = block.place + lane + right + 1;  // seen by all lanes
    const int64_t from = a < k0 ? k0 : a < k1 ? a : k1, to = b < from ? from : b < k1 ? b : k1;
    for (int64_t k = k0; k < from; ++k) edge(k);
    inner(from, to);
    for (int64_t k = to; k < k1; ++k) edge(k);
  }

  // Which of the lanes see key k: all ones or zero.
  inline __attribute__((always_inline)) auto seen(const Block& block, int64_t lane, int64_t k) const {
    const int64_t low = k - block.place - right - lane, high = k - block.place + left - lane;
    const typename V::Word index = V::lane_index();
    const Word a = low > 0 ? (low < Lanes ? Word(low) : Word(Lanes)) : Word(0);
    const Word n = high < 0 ? Word(0) : (high < Lanes ? Word(high) + 1 : Word(Lanes));
    return (index >= a) & (index < n);
  }

  void hide_masked_keys(int64_t k0, int64_t k1) {
    if (!problem.key_mask) return;
    for (int64_t k = k0; k < k1; ++k)
      if (hidden(k))
        for (int v = 0; v < query_vectors; ++v) V::store(strip + (k - k0) * Q + v * Lanes, V::all(-infinity()));
  }

  static constexpr T infinity() { return T(__builtin_inf()); }

  void start_dropout(const Block& block) {
    for (int64_t i = 0; dropout.active() && i < Q; ++i) dropout.set_query(i, query_token(block.first + i));
  }

  // The tile's scores become weights; row_max and row_sum take them in. Returns whether earlier sums must shrink by
  // `shrink[query]`.
  bool softmax_tile(const Block& block, int64_t k0, int64_t k1, T* shrink) {
    bool changed = false;
    for (int64_t lane = 0; lane < block.count; lane += Lanes) {
      T* column = strip + lane - k0 * Q;
      Vec highest = V::load(row_max + lane), other = highest;
      over_keys(
          block, lane, k0, k1,
          [&](int64_t k) {
            const Vec x = seen(block, lane, k) ? V::load(column + k * Q) : V::all(-infinity());
            V::store(column + k * Q, x);
            highest = V::max(highest, x);
          },
          [&](int64_t a, int64_t b) {
            for (; a + 1 < b; a += 2) {
              highest = V::max(highest, V::load(column + a * Q));
              other = V::max(other, V::load(column + (a + 1) * Q));
            }
            if (a < b) highest = V::max(highest, V::load(column + a * Q));
          });
      highest = V::max(highest, other);
      const Vec shift = highest == V::all(-infinity()) ? Vec{} : highest;  // nothing seen yet: weights 0, not NaN
      const Vec scale = V::exp2(V::load(row_max + lane) - shift);
      V::store(row_max + lane, highest);
      V::store(shrink + lane, scale);
      for (int i = 0; i < Lanes; ++i) changed |= !(scale[i] == T(1));
      Vec sum = V::load(row_sum + lane) * scale, sum2{};
      if (!dropout.active()) {
        int64_t k = k0;
        for (; k + 1 < k1; k += 2) {
          const Vec p = V::exp2(V::load(column + k * Q) - shift), p2 = V::exp2(V::load(column + (k + 1) * Q) - shift);
          V::store(column + k * Q, p);
          V::store(column + (k + 1) * Q, p2);
          sum += p;
          sum2 += p2;
        }
        if (k < k1) {
          const Vec p = V::exp2(V::load(column + k * Q) - shift);
          V::store(column + k * Q, p);
          sum += p;
        }
      } else {
        for (int64_t k = k0; k < k1; ++k) {
          const Vec p = V::exp2(V::load(column + k * Q) - shift);
          V::store(column + k * Q, p * dropout.keep(lane, key_token(k)));
          sum += p;
        }
      }
      V::store(row_sum + lane, sum + sum2);
    }
    return changed;
  }

  // to[query][d] (+)= sum_key weights[key - k0][query] rows[key][d]
  template <bool accumulate>
  void gather(const Block& block, int64_t k0, int64_t k1, const T* weights, const T* rows, T* to) const {
    by_width<RegisterTile<Lanes>::widest>(0, int(width / Lanes), [&](auto columns, int v) {
      constexpr int group = RegisterTile<Lanes>::rows(columns());
      for (int64_t q = 0; q < block.count; q += group) {
        int64_t a, b;
        keys_of(block, q, group, k0, k1, a, b);
        micro_gemm<T, Lanes, group, columns(), Walk::columns, accumulate>(
            weights + (a - k0) * Q + q, Q, rows + (a - keys_begin) * width + v * Lanes, width, b - a,
            to + q * width + v * Lanes, width);
      }
    });
  }

  // to[key][d] += sum_query weights[key - k0][query] rows[query][d]
  void scatter(const Block& block, int64_t k0, int64_t k1, const T* weights, const T* rows, T* to) const {
    by_width<RegisterTile<Lanes>::widest>(0, int(width / Lanes), [&](auto columns, int v) {
      constexpr int group = RegisterTile<Lanes>::rows(columns());
      auto product = [&](auto size, int64_t k) {
        const int64_t low = k - block.place - right, high = k + size() - 1 - block.place + left;
        const int64_t a = low > 0 ? low : 0, b = high + 1 < block.count ? high + 1 : block.count;
        if (a >= b) return;
        micro_gemm<T, Lanes, size(), columns(), Walk::rows, true>(
            weights + (k - k0) * Q + a, Q, rows + a * width + v * Lanes, width, b - a,
            to + (k - keys_begin) * width + v * Lanes, width);
      };
      int64_t k = k0;
      for (; k + group <= k1; k += group) product(std::integral_constant<int, group>{}, k);
      for (; k < k1; ++k) product(std::integral_constant<int, 1>{}, k);
    });
  }

  void forward() {
    T shrink[Q];
    for (int64_t first = item.begin; first < item.end; first += Q) {
      const Block block = block_at(first);
      stage_transposed(queries_t, problem.query, first, block.count, T(problem.scale) * log2e, sums);
      start_dropout(block);
      for (int64_t i = 0; i < Q; ++i) row_max[i] = -infinity(), row_sum[i] = 0;
      for (int64_t i = 0; block.begin >= block.end && i < Q * width; ++i) sums[i] = 0;
      for (int64_t k0 = block.begin; k0 < block.end; k0 += key_tile) {
        const int64_t k1 = k0 + key_tile < block.end ? k0 + key_tile : block.end;
        scores(block, k0, k1, keys, queries_t, strip);
        hide_masked_keys(k0, k1);
        const bool changed = softmax_tile(block, k0, k1, shrink);
        if (k0 == block.begin) {
          gather<false>(block, k0, k1, strip, values, sums);
          continue;
        }
        for (int64_t i = 0; changed && i < block.count; ++i)
          for (int64_t d = 0; d < width; ++d) sums[i * width + d] *= shrink[i];
        gather<true>(block, k0, k1, strip, values, sums);
      }
      for (int64_t i = 0; i < block.count; ++i) {
        const T normaliser = row_sum[i] > 0 || row_sum[i] != row_sum[i] ? 1 / row_sum[i] : T(0);
        char* to = row_of(problem.out, item.batch, item.head, query_token(first + i));
        write_row(to, sums + i * width, normaliser, problem.out.dtype, D);
        static_cast<T*>(problem.lse)[statistics_at(first + i)] = (row_max[i] + T(std::log2(row_sum[i]))) * ln2;
      }
    }
  }

  // p and ds of the tile from its scores and dp: strip <- p (dropped), strip2 <- ds.
  void softmax_tile_backward(const Block& block, int64_t k0, int64_t k1) {
    const Vec scale = V::all(T(problem.scale));
    for (int64_t lane = 0; lane < block.count; lane += Lanes) {
      T *column = strip + lane - k0 * Q, *column2 = strip2 + lane - k0 * Q;
      const Vec lse = V::load(row_lse + lane), delta = V::load(row_delta + lane);
      auto finish = [&](int64_t k, Vec p) {
        Vec dp = V::load(column2 + k * Q);
        if (dropout.active()) {
          const Vec kept = dropout.keep(lane, key_token(k));
          V::store(column + k * Q, p * kept);
          dp *= kept;
        } else {
          V::store(column + k * Q, p);
        }
        V::store(column2 + k * Q, p * (dp - delta) * scale);
      };
      auto weight = [&](int64_t k) {
        const Vec x = V::load(column + k * Q) - lse;
        return V::exp2(x > Vec{} ? Vec{} : x);  // rounding may put a lone key a hair above its lse
      };
      over_keys(
          block, lane, k0, k1,
          [&](int64_t k) {
            const auto visible = seen(block, lane, k);
            V::store(column2 + k * Q, visible ? V::load(column2 + k * Q) : Vec{});
            finish(k, visible ? weight(k) : Vec{});
          },
          [&](int64_t a, int64_t b) {
            for (; a < b; ++a) finish(a, weight(a));
          });
    }
  }

  void load_rows_of_backward(const Block& block) {
    stage_transposed(queries_t, problem.query, block.first, block.count, T(problem.scale) * log2e, sums);
    stage_transposed(grads_t, problem.grad_out, block.first, block.count, T(1), sums);
    const int64_t token = query_token(block.first);
    read_rows(queries, width, problem.query, item.batch, item.head, token, chain.step, block.count, D);
    read_rows(grads, width, problem.grad_out, item.batch, item.head, token, chain.step, block.count, D);
    for (int64_t i = 0; i < Q; ++i) {
      row_lse[i] = row_delta[i] = 0;
      if (i >= block.count) continue;
      const int64_t at = statistics_at(block.first + i);
      const T lse = static_cast<const T*>(problem.lse)[at];
      row_lse[i] = lse == -infinity() ? T(0) : lse * log2e;
      read_row(sums, row_of(problem.out, item.batch, item.head, query_token(block.first + i)), problem.out.dtype, D);
      for (int64_t d = 0; d < D; ++d) row_delta[i] += sums[d] * grads[i * width + d];
      if (problem.grad_lse) row_delta[i] -= static_cast<const T*>(problem.grad_lse)[at];
    }
  }

  void backward() {
    for (int64_t first = item.begin; first < item.end; first += Q) {
      const Block block = block_at(first);
      load_rows_of_backward(block);
      start_dropout(block);
      for (int64_t i = 0; i < Q * width; ++i) sums[i] = 0;
      for (int64_t k0 = block.begin; k0 < block.end; k0 += key_tile) {
        const int64_t k1 = k0 + key_tile < block.end ? k0 + key_tile : block.end;
        scores(block, k0, k1, keys, queries_t, strip);
        scores(block, k0, k1, values, grads_t, strip2);
        hide_masked_keys(k0, k1);
        softmax_tile_backward(block, k0, k1);
        gather<true>(block, k0, k1, strip2, keys, sums);
        scatter(block, k0, k1, strip, grads, grad_values);
        scatter(block, k0, k1, strip2, queries, grad_keys);
      }
      for (int64_t i = 0; i < block.count; ++i) {
        char* to = row_of(problem.grad_query, item.batch, item.head, query_token(first + i));
        write_row(to, sums + i * width, T(1), problem.grad_query.dtype, D);
      }
    }
    add_rows(problem.grad_key, grad_keys);
    add_rows(problem.grad_value, grad_values);
  }

  void add_rows(const Rows& to, const T* from) const {
    for (int64_t place = keys_begin; place < keys_end; ++place, from += width) {
      T* row = reinterpret_cast<T*>(row_of(to, item.batch, item.head, key_token(place)));
      for (int64_t d = 0; d < D; ++d) row[d] += from[d];
    }
  }

  static void run_forward(const BandedProblem& problem, const BandedItem& item, void* scratch) {
    Banded(problem, item, scratch, false).forward();
  }
  static void run_backward(const BandedProblem& problem, const BandedItem& item, void* scratch) {
    Banded(problem, item, scratch, true).backward();
  }
  static constexpr BandedKernels kernels() { return {&scratch_bytes, &run_forward, &run_backward}; }
};
