// Attention with soft spans, backward: some keys of one head against all blocks of queries that see them.
// Included inside an unnamed namespace between LONGSPAN_TARGET_BEGIN and _END, once per instruction set, after
// span_tiles.h. The scores are computed again from lse.

template <class T, int Lanes>
struct SpanBackward : SpanTiles<T, Lanes> {
  using Base = SpanTiles<T, Lanes>;
  using Tiles = BandTiles<T, Lanes>;
  using V = Simd<T, Lanes>;
  using Vec = typename V::Vec;
  using Word = typename V::Word;
  using Base::batch, Base::dropout, Base::head, Base::problem, Base::strip, Base::positions, Base::keys, Base::values,
      Base::Q, Base::width, Base::D, Base::infinity, Base::slack, Base::overlap, Base::staged_begin, Base::staged_end;
  using typename Base::Block;

  const SpanBackwardItem& item;
  Block block;
  T *grad_query, *grad_span, *grad_table;  // this item's shares
  T *grad_keys, *grad_values;              // as keys
  T *queries, *grads, *grads_t, *staged;   // [48][width], [48][width], [width][48], [48][width]
  T *changes, *moved;                      // as strip, with Lanes rows of zeros in front; as positions
  T row_lse[Q], row_delta[Q], row_slope[Q];

  static size_t layout(const SpanProblem& problem, char* base, SpanBackward* self) {
    const int64_t width = Tiles::padded(problem.D), staged = (kSpanKeys + slack) * width, block = Q * width;
    ScratchPieces pieces{base};
    auto take = [&pieces](int64_t count) { return pieces.template take<T>(count); };
    T* large[] = {take(staged), take(staged), take(staged), take(staged)};
    T* blocks[] = {take(block), take(block), take(block), take(block), take(block)};
    T* strips[] = {
        take(Base::strip_rows * Q), take(Base::position_rows * Q), take((Base::strip_rows + Lanes) * Q),
        take(Base::position_rows * Q)};
    T* row_span = take(Q);
    if (self) {
      self->keys = large[0], self->values = large[1], self->grad_keys = large[2], self->grad_values = large[3];
      self->block.queries_t = blocks[0], self->queries = blocks[1], self->grads = blocks[2];
      self->grads_t = blocks[3], self->staged = blocks[4];
      self->strip = strips[0], self->positions = strips[1];
      self->changes = strips[2] + Lanes * Q, self->moved = strips[3];
      self->block.row_span = row_span;
      for (int64_t i = 0; i < Lanes * Q; ++i) strips[2][i] = 0;
    }
    return size_t(pieces.next - base);
  }
  static size_t scratch_bytes(const SpanProblem& problem) { return layout(problem, nullptr, nullptr); }

  SpanBackward(const SpanProblem& problem, const SpanBackwardItem& item, void* scratch)
      : Base(problem, item.batch, item.head),
        item(item),
        grad_query(static_cast<T*>(item.grad_query)),
        grad_span(static_cast<T*>(item.grad_span)),
        grad_table(static_cast<T*>(item.grad_table)) {
    layout(problem, static_cast<char*>(scratch), this);
  }

  void run() {
    for (int64_t i = 0; i < item.queries() * width; ++i) grad_query[i] = 0;
    for (int64_t i = 0; i < item.queries(); ++i) grad_span[i] = 0;
    for (int64_t i = 0; i < item.offsets() * width; ++i) grad_table[i] = 0;
    for (int64_t begin = item.keys_begin, next; begin < item.keys_end; begin = next) {
      next = Base::least(Base::whole(begin, kSpanKeys) + kSpanKeys, item.keys_end);
      Base::stage_keys(begin, next);
      for (int64_t i = 0; i < (next - begin) * width; ++i) grad_keys[i] = grad_values[i] = 0;
      for (int64_t index = item.first_block; index < item.last_block; ++index) {
        Base::place(block, index);
        if (Base::least(block.end, next) > Base::most(block.begin, begin)) differentiate(index);
      }
      for (int64_t key = Base::most(begin, 0); key < next; ++key) {
        const int64_t at = (key - begin) * width;
        write_row(row_of(problem.grad_key, batch, head, key), grad_keys + at, T(1), problem.grad_key.dtype, D);
        write_row(row_of(problem.grad_value, batch, head, key), grad_values + at, T(1), problem.grad_value.dtype, D);
      }
    }
  }

  void load_rows() {
    const int64_t count = block.band.count;
    Tiles::stage_transposed(
        block.queries_t, problem.query, batch, head, block.first, 1, count, T(problem.scale) * Base::log2e, staged);
    Tiles::stage_transposed(grads_t, problem.grad_out, batch, head, block.first, 1, count, T(1), staged);
    read_rows(queries, width, problem.query, batch, head, block.first, 1, count, D);
    read_rows(grads, width, problem.grad_out, batch, head, block.first, 1, count, D);
    for (int64_t i = 0; i < Q; ++i) {
      row_lse[i] = row_delta[i] = row_slope[i] = 0;
      if (i >= count) continue;
      const int64_t at = Base::statistics_at(block.first + i);
      const T lse = static_cast<const T*>(problem.lse)[at];
      if (lse == -infinity()) {  // sees nothing: no weights, no slopes
        row_lse[i] = infinity();
        continue;
      }
      row_lse[i] = lse * Base::log2e;
      read_row(staged, row_of(problem.out, batch, head, block.first + i), problem.out.dtype, D);
      for (int64_t d = 0; d < D; ++d) row_delta[i] += staged[d] * grads[i * width + d];
      if (problem.grad_lse) row_delta[i] -= static_cast<const T*>(problem.grad_lse)[at];
    }
  }

  void differentiate(int64_t index) {
    load_rows();
    for (int64_t i = 0; dropout.active() && i < Q; ++i) dropout.set_query(i, block.first + i);
    T* to = grad_query + (index - item.first_block) * Q * width;
    int64_t last_size = 0, last_end = 0;
    Base::over_tiles(block, [&](int64_t k0, int64_t k1, bool first) {
      const bool real = k1 > 0;  // else zero cache: nothing to multiply with
      Base::load_scores(block, k0, k1, first, last_size);
      if (real)
        Tiles::template products<false>(block.band, k0, k1, Base::value_row(k0), grads_t, changes);
      else
        for (int64_t i = 0; i < (k1 - k0) * Q; ++i) changes[i] = 0;
      softmax_tile(k0, k1);
      if (real) {
        const int64_t at = (k0 - staged_begin) * width;
        Tiles::template gather<true>(block.band, k0, k1, changes, Base::key_row(k0), to);
        Tiles::scatter(block.band, k0, k1, strip, grads, grad_values + at);
        Tiles::scatter(block.band, k0, k1, changes, queries, grad_keys + at);
      }
      if (Base::table) {
        move_changes(k0, k1, first, last_size);
        differentiate_positions(Base::first_offset(block, k0), k1 - k0, moved, to);
      }
      last_size = k1 - k0, last_end = k1;
    });
    if (Base::table) differentiate_positions(Base::first_offset(block, last_end), overlap, moved + last_size * Q, to);
    for (int64_t i = 0; i < block.band.count; ++i) grad_span[(index - item.first_block) * Q + i] += row_slope[i];
  }

  // Weights and changes of the scores from scores and from products with values: strip <- p (dropped), changes <- ds.
  void softmax_tile(int64_t k0, int64_t k1) {
    const Vec scale = V::all(T(problem.scale));
    for (int64_t lane = 0; lane < block.band.count; lane += Lanes) {
      T *column = strip + lane - k0 * Q, *column2 = changes + lane - k0 * Q;
      const auto extent = Base::extent(block, lane, k0, k1);
      const Vec span = V::load(block.row_span + lane), lse = V::load(row_lse + lane), delta = V::load(row_delta + lane);
      Vec slope{};
      // Stores p and ds of a key from its weight before dropout, and from the product with its value.
      auto finish = [&](int64_t k, Vec p, Vec product) {
        Vec kept_p = p;
        if (dropout.active()) {
          const Vec kept = dropout.keep(lane, k);
          kept_p *= kept, product *= kept;
        }
        V::store(column + k * Q, kept_p);
        const Vec change = product - delta;
        V::store(column2 + k * Q, p * change * scale);
        return change;
      };
      auto exponent = [&](int64_t k) { return V::load(column + k * Q) - lse; };
      Base::over_keys(
          extent, k0, k1,
          [&](int64_t k) {
            const auto mask = Base::mask_at(block, lane, k, span);
            const Word seen = mask.seen & (Word)(mask.inside >= Base::reach_of_ramp);
            const Vec x = exponent(k), most = V::all(T(largest_exponent));
            const Vec e = V::exp2(seen ? (x < most ? x : most) : V::all(-infinity()));
            const Vec change = finish(k, e * Base::weight(mask), seen ? V::load(column2 + k * Q) : Vec{});
            slope += mask.inside <= Vec{} ? e * change : Vec{};
          },
          [&](int64_t a, int64_t b) {
            for (; a < b; ++a) {
              const Vec x = exponent(a);  // rounding may put a lone key a hair above its lse
              finish(a, V::exp2(x > Vec{} ? Vec{} : x), V::load(column2 + a * Q));
            }
          },
          [&](int64_t a, int64_t b) {
            for (; a < b; ++a) {
              V::store(column + a * Q, Vec{});
              V::store(column2 + a * Q, Vec{});
            }
          });
      V::store(row_slope + lane, V::load(row_slope + lane) + slope * Base::reciprocal_ramp);
    }
  }
  static constexpr double largest_exponent = 80 * 1.4426950408889634;  // as in the reference

  // moved[offset][query] += changes[key][query]; complete are the rows that the next tile does not reach.
  void move_changes(int64_t k0, int64_t k1, bool first, int64_t last_size) {
    const int64_t size = k1 - k0;
    if (first)
      for (int64_t i = 0; i < overlap * Q; ++i) moved[i] = 0;
    else
      std::memmove(moved, moved + last_size * Q, size_t(overlap * Q) * sizeof(T));
    for (int64_t i = overlap * Q; i < Base::position_rows * Q; ++i) moved[i] = 0;
    for (int64_t i = size * Q; i < (size + 2 * Lanes) * Q; ++i) changes[i] = 0;
    for (int64_t lane = 0; lane < block.band.count; lane += Lanes)
      for (int64_t i = 1 - Lanes; i < size; i += Lanes)
        Shear<T, Lanes>::add_later(changes + i * Q + lane, moved + (i + overlap - lane) * Q + lane, Q);
  }

  // The share of `count` offsets in the gradients of queries and table.
  void differentiate_positions(int64_t offset, int64_t count, const T* rows, T* to) {
    int64_t a = offset, b = offset + count;
    Base::clip(block, a, b);
    if (a >= b) return;
    rows += (a - offset) * Q;
    const Band everything{0, block.band.count, int64_t(1) << 40, int64_t(1) << 40};
    Tiles::template gather<true>(everything, a, b, rows, Base::table_row(a), to);
    Tiles::scatter(everything, a, b, rows, queries, grad_table + (a - item.offset_begin) * width);
  }

  static void differentiate_item(const SpanProblem& problem, const SpanBackwardItem& item, void* scratch) {
    SpanBackward(problem, item, scratch).run();
  }
};

template <class T, int Lanes>
void stage_table(const Rows& from, int64_t head, int64_t row, int64_t step, int64_t count, int64_t D, void* to) {
  read_rows(static_cast<T*>(to), BandTiles<T, Lanes>::padded(D), from, 0, head, row, step, count, D);
}

template <class T, int Lanes>
constexpr SpanKernels span_kernels() {
  return {
      Lanes,
      &stage_table<T, Lanes>,
      &SpanForward<T, Lanes>::scratch_bytes,
      &SpanForward<T, Lanes>::attend_item,
      &SpanDecode<T, Lanes>::scratch_bytes,
      &SpanDecode<T, Lanes>::attend_query,
      &SpanBackward<T, Lanes>::scratch_bytes,
      &SpanBackward<T, Lanes>::differentiate_item};
}
