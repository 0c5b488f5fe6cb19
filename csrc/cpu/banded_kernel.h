// Banded attention of one item (a run of queries of one chain), forward and backward.
// Included inside an unnamed namespace between LONGSPAN_TARGET_BEGIN and _END, once per instruction set, after
// band_tiles.h and dropout_lanes.h.
//
// A block of 48 queries walks over the keys of its band in tiles.
// Scores are in units of log 2 (exp(x) = 2^(x log2 e)); the running maximum and sum per query are as in Milakov and
// Gimelshein 2018.

template <class T, int Lanes>
struct Banded : BandedRun, BandTiles<T, Lanes> {
  using Tiles = BandTiles<T, Lanes>;
  using V = Simd<T, Lanes>;
  using Vec = typename V::Vec;
  using Word = typename V::Bits;
  using Tiles::D, Tiles::width, Tiles::Q, Tiles::query_vectors, Tiles::key_tile, Tiles::slack, Tiles::padded;
  using Tiles::log2e, Tiles::ln2, Tiles::infinity;

  DropoutLanes<T, Lanes, Q> dropout;

  // Scratch.
  T *keys, *values;                       // [keys_end - keys_begin + slack][width]
  T *queries_t, *strip;                   // [width][48], [key_tile + slack][48]
  T* sums;                                // [48][width]
  T *grad_keys, *grad_values;             // as keys
  T *queries, *grads, *grads_t, *strip2;  // [48][width], [48][width], [width][48], as strip
  T row_max[Q], row_sum[Q], row_lse[Q], row_delta[Q];

  static size_t scratch_bytes(const BandedProblem& problem, int64_t num_keys, bool backward) {
    const int64_t width = padded(problem.D), rows = num_keys + slack, strips = (key_tile + slack) * Q;
    const int64_t forward = 2 * rows * width + width * Q + strips + Q * width;
    const int64_t more = 2 * rows * width + 2 * Q * width + width * Q + strips;
    return (forward + (backward ? more : 0)) * sizeof(T) + 16 * 64;
  }

  Banded(const BandedProblem& problem, const BandedItem& item, void* scratch, bool backward)
      : BandedRun(problem, item), Tiles(problem.D), dropout(problem.dropout, item.batch, item.head) {
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

  void stage_transposed(T* to, const Rows& rows, int64_t first, int64_t count, T factor, T* staged) const {
    Tiles::stage_transposed(to, rows, item.batch, item.head, query_token(first), chain.step, count, factor, staged);
  }
  int64_t row_at(int64_t place) const { return (place - keys_begin) * width; }

  // One block of queries: where it stands, and which keys it may see.
  struct Block {
    int64_t first;       // query of the chain
    Band band;           // from that query's place on
    int64_t begin, end;  // keys
  };

  Block block_at(int64_t first) const {
    Block block;
    block.first = first;
    block.band = {first + chain.shift, item.end - first < Q ? item.end - first : Q, left, right};
    block.begin = clamp(block.band.place - left);
    block.end = clamp(block.band.place + block.band.count + right);
    return block;
  }

  // Calls edge(key) for the tile's keys that only part of the lanes sees, inner(a, b) for the run that all of them see.
  template <class Edge, class Inner>
  inline __attribute__((always_inline)) void over_keys(
      const Block& block, int64_t lane, int64_t k0, int64_t k1, Edge&& edge, Inner&& inner) const {
    const int64_t a = block.band.place + lane + Lanes - 1 - left,
                  b = block.band.place + lane + right + 1;  // seen by all lanes
    const int64_t from = a < k0 ? k0 : a < k1 ? a : k1, to = b < from ? from : b < k1 ? b : k1;
    for (int64_t k = k0; k < from; ++k) edge(k);
    inner(from, to);
    for (int64_t k = to; k < k1; ++k) edge(k);
  }

  // Which of the lanes see key k: all ones or zero.
  inline __attribute__((always_inline)) auto seen(const Block& block, int64_t lane, int64_t k) const {
    const int64_t low = k - block.band.place - right - lane, high = k - block.band.place + left - lane;
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

  void start_dropout(const Block& block) {
    for (int64_t i = 0; dropout.active() && i < Q; ++i) dropout.set_query(i, query_token(block.first + i));
  }

  // The tile's scores become weights; row_max and row_sum take them in. Returns whether earlier sums must shrink by
  // `shrink[query]`.
  bool softmax_tile(const Block& block, int64_t k0, int64_t k1, T* shrink) {
    bool changed = false;
    for (int64_t lane = 0; lane < block.band.count; lane += Lanes) {
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

  void forward() {
    T shrink[Q];
    for (int64_t first = item.begin; first < item.end; first += Q) {
      const Block block = block_at(first);
      stage_transposed(queries_t, problem.query, first, block.band.count, T(problem.scale) * log2e, sums);
      start_dropout(block);
      for (int64_t i = 0; i < Q; ++i) row_max[i] = -infinity(), row_sum[i] = 0;
      for (int64_t i = 0; block.begin >= block.end && i < Q * width; ++i) sums[i] = 0;
      for (int64_t k0 = block.begin; k0 < block.end; k0 += key_tile) {
        const int64_t k1 = k0 + key_tile < block.end ? k0 + key_tile : block.end;
        Tiles::template products<false>(block.band, k0, k1, keys + row_at(k0), queries_t, strip);
        hide_masked_keys(k0, k1);
        const bool changed = softmax_tile(block, k0, k1, shrink);
        if (k0 == block.begin) {
          Tiles::template gather<false>(block.band, k0, k1, strip, values + row_at(k0), sums);
          continue;
        }
        for (int64_t i = 0; changed && i < block.band.count; ++i)
          for (int64_t d = 0; d < width; ++d) sums[i * width + d] *= shrink[i];
        Tiles::template gather<true>(block.band, k0, k1, strip, values + row_at(k0), sums);
      }
      for (int64_t i = 0; i < block.band.count; ++i) {
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
    for (int64_t lane = 0; lane < block.band.count; lane += Lanes) {
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
    stage_transposed(queries_t, problem.query, block.first, block.band.count, T(problem.scale) * log2e, sums);
    stage_transposed(grads_t, problem.grad_out, block.first, block.band.count, T(1), sums);
    const int64_t token = query_token(block.first);
    read_rows(queries, width, problem.query, item.batch, item.head, token, chain.step, block.band.count, D);
    read_rows(grads, width, problem.grad_out, item.batch, item.head, token, chain.step, block.band.count, D);
    for (int64_t i = 0; i < Q; ++i) {
      row_lse[i] = row_delta[i] = 0;
      if (i >= block.band.count) continue;
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
        Tiles::template products<false>(block.band, k0, k1, keys + row_at(k0), queries_t, strip);
        Tiles::template products<false>(block.band, k0, k1, values + row_at(k0), grads_t, strip2);
        hide_masked_keys(k0, k1);
        softmax_tile_backward(block, k0, k1);
        Tiles::template gather<true>(block.band, k0, k1, strip2, keys + row_at(k0), sums);
        Tiles::scatter(block.band, k0, k1, strip, grads, grad_values + row_at(k0));
        Tiles::scatter(block.band, k0, k1, strip2, queries, grad_keys + row_at(k0));
      }
      for (int64_t i = 0; i < block.band.count; ++i) {
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
