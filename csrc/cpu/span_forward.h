// Attention with soft spans, forward: blocks of queries of one head against all keys in their reach.
// Included inside an unnamed namespace between LONGSPAN_TARGET_BEGIN and _END, once per instruction set, after
// span_tiles.h. Scores are in units of log 2; the running maximum and sum per query are as in banded_kernel.h.

template <class T, int Lanes>
struct SpanForward : SpanTiles<T, Lanes> {
  using Base = SpanTiles<T, Lanes>;
  using Tiles = BandTiles<T, Lanes>;
  using V = Simd<T, Lanes>;
  using Vec = typename V::Vec;
  using Base::batch, Base::dropout, Base::head, Base::problem, Base::strip, Base::positions, Base::keys, Base::values,
      Base::Q, Base::width, Base::D, Base::infinity, Base::slack;
  using typename Base::Block;

  struct State : Block {
    T *sums, *row_max, *row_sum;  // [48][width], [48]
  };

  const SpanItem& item;
  State* states;
  T shrink[Q];

  // Lays out scratch from `base` on; without one only counts bytes.
  static size_t layout(const SpanProblem& problem, int64_t blocks, char* base, SpanForward* self) {
    const int64_t width = Tiles::padded(problem.D), staged = (kSpanKeys + slack) * width;
    ScratchPieces pieces{base};
    auto take = [&pieces](int64_t count) { return pieces.template take<T>(count); };
    T* shared[] = {take(staged), take(staged), take(Base::strip_rows * Q), take(Base::position_rows * Q)};
    State* states = pieces.template take<State>(blocks);
    if (self) {
      self->keys = shared[0], self->values = shared[1], self->strip = shared[2], self->positions = shared[3];
      self->states = states;
    }
    for (int64_t i = 0; i < blocks; ++i) {
      T* own[] = {take(width * Q), take(Q * width), take(Q), take(Q), take(Q)};
      if (!self) continue;
      states[i].queries_t = own[0], states[i].sums = own[1];
      states[i].row_max = own[2], states[i].row_sum = own[3], states[i].row_span = own[4];
    }
    return size_t(pieces.next - base);
  }
  static size_t scratch_bytes(const SpanProblem& problem, int64_t blocks) {
    return layout(problem, blocks, nullptr, nullptr);
  }

  SpanForward(const SpanProblem& problem, const SpanItem& item, void* scratch)
      : Base(problem, item.batch, item.head), item(item) {
    layout(problem, item.last_block - item.first_block, static_cast<char*>(scratch), this);
  }

  void run() {
    int64_t begin = INT64_MAX, end = INT64_MIN;
    const int64_t count = item.last_block - item.first_block;
    for (int64_t i = 0; i < count; ++i) {
      State& state = states[i];
      Base::place(state, item.first_block + i);
      Tiles::stage_transposed(
          state.queries_t, problem.query, batch, head, state.first, 1, state.band.count, T(problem.scale) * Base::log2e,
          state.sums);
      for (int64_t j = 0; j < Q * width; ++j) state.sums[j] = 0;
      for (int64_t j = 0; j < Q; ++j) state.row_max[j] = -infinity(), state.row_sum[j] = 0;
      if (state.begin == state.end) continue;
      begin = Base::least(begin, state.begin), end = Base::most(end, state.end);
    }
    for (int64_t next; begin < end; begin = next) {
      next = Base::least(Base::whole(begin, kSpanKeys) + kSpanKeys, end);
      Base::stage_keys(begin, next);
      for (int64_t i = 0; i < count; ++i) attend(states[i]);
    }
    for (int64_t i = 0; i < count; ++i) write(states[i]);
  }

  void attend(State& state) {
    for (int64_t i = 0; dropout.active() && i < Q; ++i) dropout.set_query(i, state.first + i);
    int64_t last_size = 0;
    Base::over_tiles(state, [&](int64_t k0, int64_t k1, bool first) {
      Base::load_scores(state, k0, k1, first, last_size);
      last_size = k1 - k0;
      if (softmax_tile(state, k0, k1))
        for (int64_t i = 0; i < state.band.count; ++i)
          for (int64_t d = 0; d < width; ++d) state.sums[i * width + d] *= shrink[i];
      if (k1 > 0) Tiles::template gather<true>(state.band, k0, k1, strip, Base::value_row(k0), state.sums);
    });
  }

  // The tile's scores become weights; row_max and row_sum take them in. Returns whether earlier sums must shrink.
  bool softmax_tile(State& state, int64_t k0, int64_t k1) {
    bool changed = false;
    for (int64_t lane = 0; lane < state.band.count; lane += Lanes) {
      T* column = strip + lane - k0 * Q;
      const auto extent = Base::extent(state, lane, k0, k1);
      const Vec span = V::load(state.row_span + lane);
      Vec highest = V::load(state.row_max + lane), other = highest;
      auto hide = [&](int64_t a, int64_t b) {
        for (; a < b; ++a) V::store(column + a * Q, Vec{});
      };
      Base::over_keys(
          extent, k0, k1,
          [&](int64_t k) {
            const auto mask = Base::mask_at(state, lane, k, span);
            const auto seen = mask.seen & (typename V::Word)(mask.inside > Base::reach_of_ramp);
            const Vec x = seen ? V::load(column + k * Q) : V::all(-infinity());
            V::store(column + k * Q, x);
            highest = V::max(highest, x);
          },
          [&](int64_t a, int64_t b) {
            for (; a + 1 < b; a += 2) {
              highest = V::max(highest, V::load(column + a * Q));
              other = V::max(other, V::load(column + (a + 1) * Q));
            }
            if (a < b) highest = V::max(highest, V::load(column + a * Q));
          },
          hide);
      highest = V::max(highest, other);
      const Vec shift = highest == V::all(-infinity()) ? Vec{} : highest;  // nothing seen yet: weights 0, not NaN
      const Vec scale = V::exp2(V::load(state.row_max + lane) - shift);
      V::store(state.row_max + lane, highest);
      V::store(shrink + lane, scale);
      for (int i = 0; i < Lanes; ++i) changed |= !(scale[i] == T(1));
      Vec sum = V::load(state.row_sum + lane) * scale, sum2{};
      auto finish = [&](int64_t k, Vec p) {
        V::store(column + k * Q, dropout.active() ? p * dropout.keep(lane, k) : p);
        return p;
      };
      auto exp = [&](int64_t k) { return V::exp2(V::load(column + k * Q) - shift); };
      Base::over_keys(
          extent, k0, k1,
          [&](int64_t k) { sum += finish(k, exp(k) * Base::weight(Base::mask_at(state, lane, k, span))); },
          [&](int64_t a, int64_t b) {
            for (; a + 1 < b; a += 2) {
              sum += finish(a, exp(a));
              sum2 += finish(a + 1, exp(a + 1));
            }
            if (a < b) sum += finish(a, exp(a));
          },
          [](int64_t, int64_t) {});
      V::store(state.row_sum + lane, sum + sum2);
    }
    return changed;
  }

  void write(const State& state) const {
    for (int64_t i = 0; i < state.band.count; ++i) {
      const T sum = state.row_sum[i], normaliser = sum > 0 || sum != sum ? 1 / sum : T(0);
      char* to = row_of(problem.out, batch, head, state.first + i);
      write_row(to, state.sums + i * width, normaliser, problem.out.dtype, D);
      static_cast<T*>(problem.lse)[Base::statistics_at(state.first + i)] =
          (state.row_max[i] + T(std::log2(sum))) * Tiles::ln2;
    }
  }

  static void attend_item(const SpanProblem& problem, const SpanItem& item, void* scratch) {
    SpanForward(problem, item, scratch).run();
  }
};
