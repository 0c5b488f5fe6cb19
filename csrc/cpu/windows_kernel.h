// Attention of one item (some chunks of one round), forward and backward, as ops/windows.py and ops/block.py define it.
// Included inside an unnamed namespace between LONGSPAN_TARGET_BEGIN and _END, once per instruction set, after gemm.h,
// staging.h, transpose.h, dropout_lanes.h and windows_ring.h.
//
// A block of up to 64 queries of a chunk meets the keys of neighbouring chunks in tiles of up to 128. As in
// banded_kernel.h scores lie transposed, strip[key][query]. Staged chunks stay in a ring: a query's own chunk is the
// next one's neighbour, so that each row is gathered once, and its gradient written once, in each round.
// Rounds follow each other: the result of the rounds so far lies in `out` (not normalised), `lse` (their maximum) and
// `sum`; the last round normalises. Scores are in units of log 2.

enum class Rule { everything, not_self, earlier, not_later };  // by position, in the tokens' own order

template <class T, int Lanes>
struct Attend : KeyRing<T, Lanes> {
  using Ring = KeyRing<T, Lanes>;
  using V = Simd<T, Lanes>;
  using Vec = typename V::Vec;
  using Bits = typename V::Bits;
  static constexpr int Q = kWindowQueries;
  static constexpr int score_columns = Lanes == 16 ? 4 : 2;  // vectors of queries in one register tile of scores
  static constexpr int score_rows = RegisterTile<Lanes>::rows(score_columns);
  static constexpr T log2e = T(1.4426950408889634), ln2 = T(0.6931471805599453);
  using Entry = typename Ring::Entry;
  using Piece = typename Ring::Piece;
  using Ring::D, Ring::entries, Ring::first_at, Ring::grads, Ring::grads_t, Ring::item, Ring::load, Ring::num_entries,
      Ring::per_round, Ring::pieces, Ring::problem, Ring::queries, Ring::queries_t, Ring::release, Ring::row_at,
      Ring::stage, Ring::strip, Ring::strip2, Ring::sums, Ring::tile_keys, Ring::token_at, Ring::width;

  int64_t num_pieces = 0, tile_rows = 0;
  DropoutLanes<T, Lanes, Q> dropout;
  T row_max[Q], row_sum[Q], row_lse[Q], row_delta[Q], shrink[Q];
  Bits row_token[Q], row_first[Q];

  // The block of queries.
  int64_t own, round, begin, count;  // chunk; slots begin .. begin + count of the round

  static size_t scratch_bytes(const WindowsProblem& problem, bool backward) {
    return WindowsBuffers<T, Lanes>(problem, backward, nullptr).bytes;
  }

  Attend(const WindowsProblem& problem, const WindowsItem& item, void* scratch, bool backward_pass)
      : Ring(problem, item, scratch, backward_pass), dropout(problem.dropout, item.batch, item.head) {}

  static constexpr T infinity() { return T(__builtin_inf()); }

  // to[d][query] = factor * rows[query][d], and zero past the last query.
  void transpose(T* rows, T factor, T* to) const {
    for (int64_t i = count * width; i < Q * width; ++i) rows[i] = 0;
    transpose_rows<T, Lanes>(rows, width, Q, factor, to, Q);
  }

  void start_block(int64_t chunk, int64_t from, T* rows) {
    own = chunk, round = chunk / per_round;
    begin = chunk % per_round * problem.chunk + from;
    int64_t end = chunk % per_round * problem.chunk + problem.chunk;
    if (end > problem.T) end = problem.T;
    count = end - begin < Q ? end - begin : Q;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t token = token_at(round, begin + i);
      row_token[i] = Bits(token);
      if (problem.first) row_first[i] = Bits(first_at(round, begin + i));
      if (dropout.active()) dropout.set_query(i, token);
      load(rows + i * width, problem.query, token);
    }
    transpose(rows, T(problem.scale) * log2e, queries_t);
    for (int64_t i = count; i < Q; ++i) row_token[i] = row_first[i] = 0;
  }

  // Whether no query of the block can see any of the slots a .. b of a chunk.
  bool out_of_reach(int64_t other_round, int64_t a, int64_t b) const {
    const int64_t last = begin + count - 1;
    if (!problem.order && problem.causal && a > last) return true;
    if (!problem.same_bucket) return false;
    if (other_round != round) return true;
    const int64_t first = int64_t(row_first[0]);  // the block's first bucket
    const int64_t low = problem.reach >= 0 && begin - problem.reach > first ? begin - problem.reach : first;
    return b <= low || first_at(round, a) > last || (problem.reach >= 0 && a > last);
  }

  // Fills tiles with the keys of all neighbours and calls body() for each tile.
  template <class Body>
  void over_tiles(Body&& body) {
    auto flush = [&] {
      if (num_pieces) body();
      for (int64_t i = 0; i < num_pieces; ++i) pieces[i].entry->in_tile = false;
      num_pieces = tile_rows = 0;
    };
    for (int64_t offset = -problem.before; offset <= problem.after; ++offset) {
      const int64_t chunk = problem.neighbour(own, offset);
      if (chunk < 0) continue;
      const int64_t other_round = chunk / per_round, first = chunk % per_round * problem.chunk;
      const int64_t length = problem.T - first < problem.chunk ? problem.T - first : problem.chunk;
      for (int64_t from = 0; from < length;) {
        if (tile_rows == tile_keys) flush();
        const int64_t room = tile_keys - tile_rows, n = length - from < room ? length - from : room;
        if (!out_of_reach(other_round, first + from, first + from + n)) {
          Entry& place = entries[chunk % num_entries];
          if (place.in_tile && place.chunk != chunk) flush();
          stage(chunk).in_tile = true;
          pieces[num_pieces++] = {&place, from, n, tile_rows};
          tile_rows += n;
        }
        from += n;
      }
    }
    flush();
  }

  int lanes_used() const { return int((count + Lanes - 1) / Lanes); }

  // strip[row][query] = sum_d rows[key][d] columns_t[d][query]
  void scores(const Piece& piece, const T* rows, const T* columns_t, T* to) const {
    for (int64_t k = 0; k < piece.count; k += score_rows) {
      const T* a = rows + (piece.from + k) * width;
      by_width<score_columns>(0, lanes_used(), [&](auto columns, int v) {
        micro_gemm<T, Lanes, score_rows, columns(), Walk::rows, false>(
            a, width, columns_t + v * Lanes, Q, D, to + (piece.row + k) * Q + v * Lanes, Q);
      });
    }
  }

  template <Rule rule>
  inline __attribute__((always_inline)) Vec hide(Vec score, typename V::Word tokens, Bits key) const {
    if constexpr (rule == Rule::not_self) return tokens != key ? score : V::all(-infinity());
    if constexpr (rule == Rule::earlier) return tokens > key ? score : V::all(-infinity());
    if constexpr (rule == Rule::not_later) return tokens >= key ? score : V::all(-infinity());
    return score;
  }

  // Calls body(a constant Rule) with the rule by which positions hide keys.
  template <class Body>
  inline __attribute__((always_inline)) void by_rule(Body&& body) {
    if (problem.shared && problem.causal)
      body(std::integral_constant<Rule, Rule::earlier>{});
    else if (problem.shared)
      body(std::integral_constant<Rule, Rule::not_self>{});
    else if (problem.causal)
      body(std::integral_constant<Rule, Rule::not_later>{});
    else
      body(std::integral_constant<Rule, Rule::everything>{});
  }

  // Calls body(row of the strip, score with -inf where not visible) for the keys of the tile, lanes from `lane` on.
  template <Rule rule, class Body>
  inline __attribute__((always_inline)) void over_scores(int64_t lane, Body&& body) {
    const typename V::Word tokens = V::load_words(row_token + lane);
    for (int64_t i = 0; i < num_pieces; ++i) {
      const Piece& piece = pieces[i];
      const Bits* keys = piece.entry->tokens + piece.from;
      const bool* hidden = piece.entry->hidden + piece.from;
      T* at = strip + piece.row * Q + lane;
      for (int64_t k = 0; k < piece.count; ++k, at += Q) {
        const Vec score = hidden[k] ? V::all(-infinity()) : V::load(at);
        body(piece.row + k, hide<rule>(score, tokens, keys[k]));
      }
    }
  }

  // What hides keys beside position and mask.
  void adjust_scores() {
    if (problem.same_bucket) hide_by_bucket();
    if (problem.deduplicate) divide_by_copies();
  }

  void hide_by_bucket() {
    for (int64_t i = 0; i < num_pieces; ++i) {
      const Piece& piece = pieces[i];
      for (int64_t k = 0; k < piece.count; ++k) {
        const int64_t slot = piece.entry->begin + piece.from + k, first = first_at(piece.entry->round, slot);
        T* at = strip + (piece.row + k) * Q;
        for (int64_t q = 0; q < count; ++q) {
          const bool same = piece.entry->round == round && int64_t(row_first[q]) == first;
          if (!same || (problem.reach >= 0 && begin + q - slot > problem.reach)) at[q] = -infinity();
        }
      }
    }
  }

  // Subtracts log2 N from each visible score, N = how often the query finds the key in all rounds.
  void divide_by_copies() {
    for (int64_t i = 0; i < num_pieces; ++i) {
      const Piece& piece = pieces[i];
      for (int64_t k = 0; k < piece.count; ++k) {
        T* at = strip + (piece.row + k) * Q;
        for (int64_t q = 0; q < count; ++q)
          if (at[q] != -infinity())
            at[q] -= std::log2(T(copies(int64_t(row_token[q]), int64_t(piece.entry->tokens[piece.from + k]))));
      }
    }
  }

  int64_t copies(int64_t query, int64_t key) const {
    int64_t found = 0;
    for (int64_t r = 0; r < problem.R; ++r) {
      const int64_t query_slot = slot_of(r, query), chunk = r * per_round + query_slot / problem.chunk;
      for (int64_t s = problem.wrap ? 0 : r; s < (problem.wrap ? problem.R : r + 1); ++s) {
        const int64_t key_slot = slot_of(s, key), other = s * per_round + key_slot / problem.chunk;
        if (problem.same_bucket && (s != r || first_at(r, query_slot) != first_at(s, key_slot))) continue;
        for (int64_t offset = -problem.before; offset <= problem.after; ++offset)
          found += problem.neighbour(chunk, offset) == other;
      }
    }
    return found > 0 ? found : 1;  // not at all: hidden later
  }
  int64_t slot_of(int64_t round, int64_t token) const {
    return problem.slot_of[problem.at_slot(item.batch, item.head, round * problem.T + token)];
  }

  // The tile's scores become weights; row_max and row_sum take them in. Returns whether earlier sums must shrink.
  template <Rule rule>
  bool softmax_tile() {
    bool changed = false;
    for (int64_t lane = 0; lane < count; lane += Lanes) {
      T* column = strip + lane;
      Vec highest = V::load(row_max + lane);
      over_scores<rule>(lane, [&](int64_t k, Vec score) {
        V::store(column + k * Q, score);
        highest = V::max(highest, score);
      });
      const Vec shift = highest == V::all(-infinity()) ? Vec{} : highest;  // nothing seen yet: weights 0, not NaN
      const Vec scale = V::exp2(V::load(row_max + lane) - shift);
      V::store(row_max + lane, highest);
      V::store(shrink + lane, scale);
      for (int i = 0; i < Lanes; ++i) changed |= !(scale[i] == T(1));
      Vec sum = V::load(row_sum + lane) * scale, sum2{};
      int64_t k = 0;
      for (; k + 1 < tile_rows; k += 2) {
        const Vec p = V::exp2(V::load(column + k * Q) - shift), p2 = V::exp2(V::load(column + (k + 1) * Q) - shift);
        V::store(column + k * Q, p);
        V::store(column + (k + 1) * Q, p2);
        sum += p;
        sum2 += p2;
      }
      if (k < tile_rows) {
        const Vec p = V::exp2(V::load(column + k * Q) - shift);
        V::store(column + k * Q, p);
        sum += p;
      }
      V::store(row_sum + lane, sum + sum2);
    }
    if (dropout.active()) drop(strip);
    return changed;
  }

  void drop(T* weights) {
    for (int64_t i = 0; i < num_pieces; ++i)
      for (int64_t k = 0; k < pieces[i].count; ++k) {
        T* at = weights + (pieces[i].row + k) * Q;
        const int64_t key = int64_t(pieces[i].entry->tokens[pieces[i].from + k]);
        for (int v = 0; v < lanes_used(); ++v)
          V::store(at + v * Lanes, V::load(at + v * Lanes) * dropout.keep(v * Lanes, key));
      }
  }

  // sums[query][d] += sum_key weights[row][query] rows[key][d]
  void gather(const Piece& piece, const T* weights, const T* rows) {
    by_width<RegisterTile<Lanes>::widest>(0, int(width / Lanes), [&](auto columns, int v) {
      constexpr int group = RegisterTile<Lanes>::rows(columns());
      for (int64_t q = 0; q < count; q += group)
        micro_gemm<T, Lanes, group, columns(), Walk::columns, true>(
            weights + piece.row * Q + q, Q, rows + piece.from * width + v * Lanes, width, piece.count,
            sums + q * width + v * Lanes, width);
    });
  }

  // to[key][d] += sum_query weights[row][query] rows[query][d]
  void scatter(const Piece& piece, const T* weights, const T* rows, T* to) {
    by_width<RegisterTile<Lanes>::widest>(0, int(width / Lanes), [&](auto columns, int v) {
      constexpr int group = RegisterTile<Lanes>::rows(columns());
      auto product = [&](auto size, int64_t k) {
        micro_gemm<T, Lanes, size(), columns(), Walk::rows, true>(
            weights + (piece.row + k) * Q, Q, rows + v * Lanes, width, count, to + (piece.from + k) * width + v * Lanes,
            width);
      };
      int64_t k = 0;
      for (; k + group <= piece.count; k += group) product(std::integral_constant<int, group>{}, k);
      for (; k + 4 <= piece.count; k += 4) product(std::integral_constant<int, 4>{}, k);
      for (; k < piece.count; ++k) product(std::integral_constant<int, 1>{}, k);
    });
  }

  void clear_sums() {
    for (int64_t i = 0; i < Q * width; ++i) sums[i] = 0;
  }

  void forward() {
    for (const int64_t chunk : item.chunks)
      for (int64_t from = 0; from < problem.chunk && chunk % per_round * problem.chunk + from < problem.T; from += Q) {
        start_block(chunk, from, sums);
        for (int64_t i = 0; i < Q; ++i) row_max[i] = -infinity(), row_sum[i] = 0;
        clear_sums();
        over_tiles([&] {
          for (int64_t i = 0; i < num_pieces; ++i) scores(pieces[i], pieces[i].entry->keys, queries_t, strip);
          adjust_scores();
          bool changed = false;
          by_rule([&](auto rule) { changed = softmax_tile<rule()>(); });
          if (changed)
            for (int64_t i = 0; i < count; ++i)
              for (int64_t d = 0; d < width; ++d) sums[i * width + d] *= shrink[i];
          for (int64_t i = 0; i < num_pieces; ++i) gather(pieces[i], strip, pieces[i].entry->values);
        });
        merge_round();
      }
  }

  // Joins the block's result to that of the rounds before.
  void merge_round() {
    T *maxima = static_cast<T*>(problem.lse), *totals = static_cast<T*>(problem.sum);
    const bool last = round == problem.R - 1;
    T before[Q], now[Q];  // factors of both results
    for (int64_t i = 0; i < Q; ++i) row_lse[i] = -infinity(), row_delta[i] = 0;
    for (int64_t i = 0; round > 0 && i < count; ++i) {
      const int64_t at = problem.at(item.batch, item.head, int64_t(row_token[i]));
      row_lse[i] = maxima[at], row_delta[i] = totals[at];
    }
    for (int64_t lane = 0; lane < count; lane += Lanes) {
      const Vec a = V::load(row_lse + lane), b = V::load(row_max + lane), highest = V::max(a, b);
      const Vec shift = highest == V::all(-infinity()) ? Vec{} : highest;
      const Vec old = V::exp2(a - shift), fresh = V::exp2(b - shift);
      V::store(row_max + lane, highest);
      V::store(row_sum + lane, V::load(row_delta + lane) * old + V::load(row_sum + lane) * fresh);
      V::store(before + lane, old);
      V::store(now + lane, fresh);
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t token = int64_t(row_token[i]), at = problem.at(item.batch, item.head, token);
      T* to = reinterpret_cast<T*>(row_at(problem.out, token));
      const bool any = row_sum[i] > 0 || row_sum[i] != row_sum[i];
      const T factor = last && any ? T(1) / row_sum[i] : T(1), fresh = now[i] * factor, old = before[i] * factor;
      const T* from = sums + i * width;
      if (last && !any && problem.shared) {
        load(to, problem.value, token);
      } else if (round == 0) {
        for (int64_t d = 0; d < D; ++d) to[d] = from[d] * fresh;
      } else {
        for (int64_t d = 0; d < D; ++d) to[d] = to[d] * old + from[d] * fresh;
      }
      totals[at] = row_sum[i];
      maxima[at] = last ? (row_max[i] + T(std::log2(row_sum[i]))) * ln2 : row_max[i];
    }
  }

  // p and ds of the tile from its scores and dp: strip <- p (dropped), strip2 <- ds.
  template <Rule rule>
  void softmax_tile_backward() {
    const Vec scale = V::all(T(problem.scale));
    if (dropout.active()) drop(strip2);
    for (int64_t lane = 0; lane < count; lane += Lanes) {
      const Vec lse = V::load(row_lse + lane), delta = V::load(row_delta + lane);
      T *column = strip + lane, *column2 = strip2 + lane;
      over_scores<rule>(lane, [&](int64_t k, Vec score) {
        const Vec x = score - lse;
        const Vec p = V::exp2(x > Vec{} ? Vec{} : x);  // rounding may put a lone key a hair above its lse
        V::store(column + k * Q, p);
        V::store(column2 + k * Q, p * (V::load(column2 + k * Q) - delta) * scale);
      });
    }
    if (dropout.active()) drop(strip);
  }

  void start_backward() {
    for (int64_t i = 0; i < Q; ++i) row_lse[i] = row_delta[i] = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t token = int64_t(row_token[i]), at = problem.at(item.batch, item.head, token);
      const T lse = static_cast<const T*>(problem.lse)[at];
      row_lse[i] = lse == -infinity() ? T(0) : lse * log2e;
      row_delta[i] = static_cast<const T*>(problem.delta)[at];
      load(grads + i * width, problem.grad_out, token);
    }
    transpose(grads, T(1), grads_t);
  }

  void backward() {
    for (const int64_t chunk : item.chunks)
      for (int64_t from = 0; from < problem.chunk && chunk % per_round * problem.chunk + from < problem.T; from += Q) {
        start_block(chunk, from, queries);
        start_backward();
        clear_sums();
        over_tiles([&] {
          for (int64_t i = 0; i < num_pieces; ++i) {
            scores(pieces[i], pieces[i].entry->keys, queries_t, strip);
            scores(pieces[i], pieces[i].entry->values, grads_t, strip2);
          }
          adjust_scores();
          by_rule([&](auto rule) { softmax_tile_backward<rule()>(); });
          for (int64_t i = 0; i < num_pieces; ++i) {
            gather(pieces[i], strip2, pieces[i].entry->keys);
            scatter(pieces[i], strip2, queries, pieces[i].entry->grad_keys);
            scatter(pieces[i], strip, grads, pieces[i].entry->grad_values);
          }
        });
        for (int64_t i = 0; i < count; ++i) {
          T* to = reinterpret_cast<T*>(row_at(problem.grad_query, int64_t(row_token[i])));
          for (int64_t d = 0; d < D; ++d) to[d] += sums[i * width + d];
        }
      }
    for (int64_t i = 0; i < num_entries; ++i) release(entries[i]);
  }

  static void run_forward(const WindowsProblem& problem, const WindowsItem& item, void* scratch) {
    Attend(problem, item, scratch, false).forward();
  }
  static void run_backward(const WindowsProblem& problem, const WindowsItem& item, void* scratch) {
    Attend(problem, item, scratch, true).backward();
  }
  static constexpr WindowsKernels kernels() { return {&scratch_bytes, &run_forward, &run_backward}; }
};
