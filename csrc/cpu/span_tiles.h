// What the two passes of attention with soft spans share: staged keys, scores with their position term, the soft mask.
// Included inside an unnamed namespace between LONGSPAN_TARGET_BEGIN and _END, once per instruction set, after
// band_tiles.h, shear.h and dropout_lanes.h.
//
// The position term is a product of its own, by offset: positions[offset][query] = query . table[offset]. Its rows move
// along with the window, so that from tile to tile only as many are new as there are keys; a shear of the lanes turns
// them into rows by key. Most of a wide window lies in the flat part of the mask, where there is nothing to compute
// beyond plain attention.

template <class T, int Lanes>
struct SpanTiles : BandTiles<T, Lanes> {
  using Tiles = BandTiles<T, Lanes>;
  using V = Simd<T, Lanes>;
  using Vec = typename V::Vec;
  using Tiles::Q, Tiles::key_tile, Tiles::slack, Tiles::log2e, Tiles::width, Tiles::D, Tiles::infinity;
  static constexpr int64_t overlap = Q - 1;  // rows by offset that a tile shares with the next
  static constexpr int64_t position_rows = key_tile + overlap + 2 * Lanes;
  static constexpr int64_t strip_rows = key_tile + 2 * Lanes + slack;

  const SpanProblem& problem;
  const int64_t batch, head;
  const T* table;  // of this head
  const Vec reciprocal_ramp, reach_of_ramp, end_of_span, bias, sign;
  DropoutLanes<T, Lanes, Q> dropout;

  // Scratch.
  T *keys, *values;  // [kSpanKeys + slack][width]
  T *strip, *positions;
  int64_t staged_begin = 0, staged_end = 0;

  // Some queries and the keys that they reach.
  struct Block {
    int64_t first;  // query
    Band band;
    int64_t begin, end;  // keys
    T *queries_t, *row_span;
  };

  SpanTiles(const SpanProblem& problem, int64_t batch, int64_t head)
      : Tiles(problem.D),
        problem(problem),
        batch(batch),
        head(head),
        table(
            problem.table ? static_cast<const T*>(problem.table) +
                                (problem.position_heads > 1 ? head : 0) * problem.table_rows() * width
                          : nullptr),
        reciprocal_ramp(V::all(T(1) / T(problem.ramp))),
        reach_of_ramp(V::all(-T(problem.ramp))),
        end_of_span(V::all(T(problem.max_span))),
        bias(lane_numbers() - T(problem.bidirectional ? 0 : 1)),
        sign(V::all(T(problem.bidirectional ? -1 : 1))),
        dropout(problem.dropout, batch, head) {}

  static Vec lane_numbers() {
    Vec numbers{};
    for (int i = 0; i < Lanes; ++i) numbers[i] = T(i);
    return numbers;
  }

  static int64_t whole(int64_t place, int64_t unit) {  // rounded down to a multiple, below 0 too
    return (place >= 0 ? place : place - unit + 1) / unit * unit;
  }
  static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
  static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
  static int64_t within(int64_t x, int64_t low, int64_t high) { return x < low ? low : x < high ? x : high; }

  int64_t statistics_at(int64_t query) const { return (batch * problem.H + head) * problem.T + query; }

  // Places the block `index` and loads its spans; lanes past the last query do as that does.
  void place(Block& block, int64_t index) const {
    block.first = index * Q;
    const int64_t count = least(Q, problem.T - block.first), reach = problem.reach_of(batch, head, index);
    block.band = {block.first + problem.S - problem.T, count, problem.left(reach), problem.right(reach)};
    block.begin = block.band.place - block.band.left;
    if (!problem.zero_cache) block.begin = most(block.begin, 0);
    block.end = most(least(block.band.place + count + block.band.right, problem.S), block.begin);
    const T* span = static_cast<const T*>(problem.span) + batch * problem.span_batch + head * problem.span_head;
    for (int64_t i = 0; i < Q; ++i)
      block.row_span[i] = span[(block.first + (i < count ? i : count - 1)) * problem.span_query];
  }

  // Keys begin .. end into scratch; those before 0 are zeros.
  void stage_keys(int64_t begin, int64_t end) {
    staged_begin = begin, staged_end = end;
    const int64_t zeros = within(-begin, 0, end - begin) * width, count = end - most(begin, 0);
    for (int64_t i = 0; i < zeros; ++i) keys[i] = values[i] = 0;
    if (count <= 0) return;
    read_rows(keys + zeros, width, problem.key, batch, head, most(begin, 0), 1, count, D);
    read_rows(values + zeros, width, problem.value, batch, head, most(begin, 0), 1, count, D);
  }
  const T* key_row(int64_t key) const { return keys + (key - staged_begin) * width; }
  const T* value_row(int64_t key) const { return values + (key - staged_begin) * width; }

  // Calls body(k0, k1, first) for the block's tiles among the staged keys. Tiles begin at multiples of 96, so that how
  // work is cut into items changes no sums.
  template <class Body>
  void over_tiles(const Block& block, Body&& body) const {
    const int64_t begin = most(block.begin, staged_begin), end = least(block.end, staged_end);
    for (int64_t k0 = begin, k1; k0 < end; k0 = k1) {
      k1 = least(whole(k0, key_tile) + key_tile, end);
      body(k0, k1, k0 == begin);
    }
  }

  // The offset of row 0 of `positions` in a tile that begins at k0.
  int64_t first_offset(const Block& block, int64_t k0) const { return k0 - block.band.place - overlap; }
  const T* table_row(int64_t offset) const { return table + (offset - problem.offset_begin) * width; }
  // Offsets that the block's pairs take, within a .. b.
  void clip(const Block& block, int64_t& a, int64_t& b) const {
    a = most(a, -block.band.left), b = least(b, block.band.right + 1);
  }

  // The tile's rows of `positions`: those that the last one left, and new ones.
  void load_positions(const Block& block, int64_t k0, int64_t k1, bool first, int64_t last_size) {
    if (!first) std::memmove(positions, positions + last_size * Q, size_t(overlap * Q) * sizeof(T));
    const int64_t origin = first_offset(block, k0);
    int64_t a = first ? origin : k0 - block.band.place, b = k1 - block.band.place;
    clip(block, a, b);
    const Band everything{0, block.band.count, int64_t(1) << 40, int64_t(1) << 40};
    if (a < b)
      Tiles::template products<false>(everything, a, b, table_row(a), block.queries_t, positions + (a - origin) * Q);
  }

  // strip[key - k0][query] = query . (key + its position key), in the band.
  void load_scores(const Block& block, int64_t k0, int64_t k1, bool first, int64_t last_size) {
    if (table) {
      load_positions(block, k0, k1, first, last_size);
      for (int64_t lane = 0; lane < block.band.count; lane += Lanes) {
        int64_t a, b;
        Tiles::keys_of(block.band, lane, Lanes, k0, k1, a, b);
        for (int64_t k = k0 + (a - k0) / Lanes * Lanes; k < b; k += Lanes)
          Shear<T, Lanes>::earlier(positions + (k - k0 + overlap - lane) * Q + lane, strip + (k - k0) * Q + lane, Q);
      }
      if (k1 > 0) Tiles::template products<true>(block.band, k0, k1, key_row(k0), block.queries_t, strip);
    } else {
      Tiles::template products<false>(block.band, k0, k1, key_row(k0), block.queries_t, strip);
    }
    for (int64_t k = k0; problem.key_mask && k < k1; ++k)
      if (k >= 0 && !problem.key_mask[batch * problem.S + k])
        for (int v = 0; v < Tiles::query_vectors; ++v) V::store(strip + (k - k0) * Q + v * Lanes, V::all(-infinity()));
  }

  // What the lanes from `lane` on see of a tile: some of them a key of seen_begin .. seen_end, all of them, at weight 1
  // and off the ramp, those of flat_begin .. flat_end.
  struct Extent {
    int64_t seen_begin, flat_begin, flat_end, seen_end;
  };
  Extent extent(const Block& block, int64_t lane, int64_t k0, int64_t k1) const {
    Extent extent;
    Tiles::keys_of(block.band, lane, Lanes, k0, k1, extent.seen_begin, extent.seen_end);
    T shortest = block.row_span[lane];
    for (int i = 1; i < Lanes; ++i)
      if (!(block.row_span[lane + i] >= shortest)) shortest = block.row_span[lane + i];
    const int64_t last = problem.max_span - 1;
    const int64_t flat = shortest > T(last) ? last : shortest > T(0) ? int64_t(std::ceil(shortest)) - 1 : -1;
    const int64_t place = block.band.place + lane;
    const int64_t a = place + Lanes - 1 - flat - (problem.bidirectional ? 0 : 1);
    const int64_t b = problem.bidirectional ? place + flat + 1 : place;
    extent.flat_begin = within(flat < 0 ? extent.seen_end : a, extent.seen_begin, extent.seen_end);
    extent.flat_end = within(b, extent.flat_begin, extent.seen_end);
    return extent;
  }

  // Calls edge(key) where the mask has to be looked at, inner(a, b) where it is flat, outside(a, b) where nobody sees.
  template <class Edge, class Inner, class Outside>
  static inline __attribute__((always_inline)) void over_keys(
      const Extent& extent, int64_t k0, int64_t k1, Edge&& edge, Inner&& inner, Outside&& outside) {
    outside(k0, extent.seen_begin);
    for (int64_t k = extent.seen_begin; k < extent.flat_begin; ++k) edge(k);
    inner(extent.flat_begin, extent.flat_end);
    for (int64_t k = extent.flat_end; k < extent.seen_end; ++k) edge(k);
    outside(extent.seen_end, k1);
  }

  // The mask for key k and the lanes from `lane` on.
  struct Mask {
    Vec inside;  // span - distance
    typename V::Word seen;
  };
  inline __attribute__((always_inline)) Mask mask_at(const Block& block, int64_t lane, int64_t k, Vec span) const {
    const Vec from = bias + T(block.band.place + lane - k), distance = V::max(from, from * sign);
    return {span - distance, (typename V::Word)((distance >= Vec{}) & (distance < end_of_span))};
  }
  inline __attribute__((always_inline)) Vec weight(const Mask& mask) const {
    const Vec m = V::max(mask.inside * reciprocal_ramp + T(1), Vec{});
    return m < V::all(1) ? m : V::all(1);
  }
};
