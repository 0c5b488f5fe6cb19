// Attention with a soft span for one query, as in generation: every key is read once, in place where that can be.
// Included inside an unnamed namespace between LONGSPAN_TARGET_BEGIN and _END, once per instruction set, after
// span_tiles.h. Keys lie in vector lanes here.

template <class T, int Lanes>
struct SpanDecode {
  using V = Simd<T, Lanes>;
  using Vec = typename V::Vec;
  using Tiles = BandTiles<T, Lanes>;
  static constexpr int64_t chunk = 96;  // keys at a time

  const SpanProblem& problem;
  const SpanQuery& item;
  const int64_t D, width;
  T *query, *sums, *scores, *mask;           // [width], [width], [chunk + Lanes] twice
  T *keys, *values, *position_keys, *zeros;  // [chunk + Lanes][width] for rows that cannot be read in place, [width]

  // Rows of a chunk: `stride` apart, where a negative one is for position keys.
  struct Chunk {
    const T* rows;
    int64_t stride;
  };

  static size_t layout(const SpanProblem& problem, char* base, SpanDecode* self) {
    const int64_t width = Tiles::padded(problem.D), rows = (chunk + Lanes) * width;
    ScratchPieces pieces{base};
    auto take = [&pieces](int64_t count) { return pieces.template take<T>(count); };
    T* at[] = {take(width), take(width), take(chunk + Lanes), take(chunk + Lanes),
               take(rows),  take(rows),  take(rows),          take(width)};
    if (self) {
      self->query = at[0], self->sums = at[1], self->scores = at[2], self->mask = at[3];
      self->keys = at[4], self->values = at[5], self->position_keys = at[6], self->zeros = at[7];
    }
    return size_t(pieces.next - base);
  }
  static size_t scratch_bytes(const SpanProblem& problem) { return layout(problem, nullptr, nullptr); }

  SpanDecode(const SpanProblem& problem, const SpanQuery& item, void* scratch)
      : problem(problem), item(item), D(problem.D), width(Tiles::padded(problem.D)) {
    layout(problem, static_cast<char*>(scratch), this);
  }

  static Vec lane_numbers() {
    Vec numbers{};
    for (int i = 0; i < Lanes; ++i) numbers[i] = T(i);
    return numbers;
  }
  static constexpr T infinity() { return T(__builtin_inf()); }
  static constexpr Dtype own_dtype = sizeof(T) == 8 ? Dtype::f64 : Dtype::f32;
  bool in_place(const Rows& rows) const { return rows.dtype == own_dtype && D == width; }

  // `count` rows, `step` tokens apart; copied to `staged` where they are not vectors of T.
  Chunk load(
      const Rows& rows, int64_t batch, int64_t head, int64_t token, int64_t step, int64_t count, T* staged) const {
    if (in_place(rows)) return {reinterpret_cast<const T*>(row_of(rows, batch, head, token)), rows.row * step};
    read_rows(staged, width, rows, batch, head, token, step, count, D);
    return {staged, width};
  }

  // scores[k] = query . (key + position key) for k < count.
  void load_scores(Chunk keys, Chunk positions, int64_t count) {
    for (int64_t k = 0; k < count; k += Lanes) {
      Vec sum[Lanes];
      const int64_t last = count - 1 - k;  // lanes past it repeat the last key
#pragma GCC unroll 16
      for (int j = 0; j < Lanes; ++j) {
        const int64_t at = k + (j < last ? j : last);
        const T *key = keys.rows + at * keys.stride, *position = positions.rows + at * positions.stride;
        Vec dot{};
        for (int64_t d = 0; d < width; d += Lanes)
          dot += V::load(query + d) * (V::load(key + d) + V::load(position + d));
        sum[j] = dot;
      }
      exchange_all<1, Lanes>(sum);
      Vec total{};
      for (int j = 0; j < Lanes; ++j) total += sum[j];
      V::store(scores + k, total);
    }
  }

  void run() {
    const int64_t place = item.query + problem.S - problem.T, b = item.batch, h = item.head;
    const T span = static_cast<const T*>(
        problem.span)[b * problem.span_batch + h * problem.span_head + item.query * problem.span_query];
    const int64_t reach = problem.reach_of(b, h, 0);
    const int64_t floor = problem.zero_cache ? place - problem.left(reach) : 0;
    const int64_t begin = floor > place - problem.left(reach) ? floor : place - problem.left(reach);
    const int64_t end = problem.S < place + problem.right(reach) + 1 ? problem.S : place + problem.right(reach) + 1;
    read_row(query, row_of(problem.query, b, h, item.query), problem.query.dtype, D);
    for (int64_t d = D; d < width; ++d) query[d] = 0;
    for (int64_t d = 0; d < width; ++d) query[d] *= T(problem.scale) * Tiles::log2e, sums[d] = zeros[d] = 0;
    DropoutLanes<T, Lanes, 1> dropout(problem.dropout, b, h);
    uint32_t first = 0, second = 0;
    if (dropout.active()) dropout.set_query(0, item.query), first = dropout.first[0], second = dropout.second[0];
    T highest = -infinity(), total = 0;
    for (int64_t k0 = begin, k1; k0 < end; k0 = k1) {
      k1 = k0 + chunk < end ? k0 + chunk : end;
      if (k0 < 0 && k1 > 0) k1 = 0;  // the zero cache apart
      const int64_t count = k1 - k0;
      const bool real = k0 >= 0;
      Chunk key{zeros, 0}, position{zeros, 0};
      if (real) key = load(problem.key, b, h, k0, 1, count, keys);
      if (problem.position_rows) {
        // Rows of position keys run one way within a chunk: it does not pass the query itself.
        if (problem.symmetric() && k0 < place && k1 > place) k1 = place;
        const int64_t head = problem.position_heads > 1 ? h : 0, row = problem.position_row(k0 - place);
        const int64_t step = problem.position_row(k0 - place + 1) - row;
        position = load(problem.position, 0, head, row, step, k1 - k0, position_keys);
      }
      attend_chunk(k0, k1 - k0, place, span, key, position, highest, total);
      if (!real) continue;
      for (int64_t k = 0; dropout.active() && k < k1 - k0; ++k) {
        uint32_t one;
        draw(first, second, uint32_t(k0 + k), one);
        scores[k] *= one >= problem.dropout.threshold ? T(problem.dropout.keep_scale) : T(0);
      }
      const Chunk value = load(problem.value, b, h, k0, 1, k1 - k0, values);
      by_width<RegisterTile<Lanes>::widest>(0, int(width / Lanes), [&](auto columns, int v) {
        micro_gemm<T, Lanes, 1, columns(), Walk::rows, true>(
            scores, 0, value.rows + v * Lanes, value.stride, k1 - k0, sums + v * Lanes, 0);
      });
    }
    const T normaliser = total > 0 || total != total ? 1 / total : T(0);
    write_row(row_of(problem.out, b, h, item.query), sums, normaliser, problem.out.dtype, D);
    static_cast<T*>(problem.lse)[(b * problem.H + h) * problem.T + item.query] =
        (highest + T(std::log2(total))) * Tiles::ln2;
  }

  // The chunk's scores become weights; the running maximum and sum take them in, earlier sums shrink.
  void attend_chunk(int64_t k0, int64_t count, int64_t place, T span, Chunk key, Chunk position, T& highest, T& total) {
    load_scores(key, position, count);
    const Vec bias = V::all(problem.bidirectional ? T(0) : T(1)) + lane_numbers(), lowest = V::all(-infinity());
    const Vec sign = V::all(problem.bidirectional ? T(-1) : T(1)), ramp = V::all(T(problem.ramp));
    const T before = highest;
    for (int64_t k = 0; problem.key_mask && k0 >= 0 && k < count; ++k)
      if (!problem.key_mask[item.batch * problem.S + k0 + k]) scores[k] = -infinity();
    Vec most = V::all(highest);
    for (int64_t k = 0; k < count; k += Lanes) {
      const Vec from = T(place - k0 - k) - bias, distance = V::max(from, from * sign), inside = span - distance;
      const auto seen = (distance >= Vec{}) & (distance < V::all(T(problem.max_span))) & (inside > -ramp) &
                        (lane_numbers() < V::all(T(count - k)));
      const Vec m = V::max(inside / ramp + T(1), Vec{}), score = seen ? V::load(scores + k) : lowest;
      V::store(mask + k, m < V::all(1) ? m : V::all(1));
      V::store(scores + k, score);
      most = V::max(most, score);
    }
    for (int i = 0; i < Lanes; ++i) highest = highest > most[i] ? highest : most[i];
    const Vec shift = V::all(highest == -infinity() ? T(0) : highest);
    Vec sum{};
    for (int64_t k = 0; k < count; k += Lanes) {
      const Vec p = V::exp2(V::load(scores + k) - shift) * V::load(mask + k);
      V::store(scores + k, p);
      sum += p;
    }
    const T shrink = before == -infinity() ? T(0) : T(std::exp2(before - highest));
    total = total * shrink + V::sum(sum);
    if (shrink != T(1))
      for (int64_t d = 0; d < width; ++d) sums[d] *= shrink;
  }

  static void attend_query(const SpanProblem& problem, const SpanQuery& item, void* scratch) {
    SpanDecode(problem, item, scratch).run();
  }
};
