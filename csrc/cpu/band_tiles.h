// Products over tiles of a band: a block of 48 queries against some of the keys that its band reaches.
// Included inside an unnamed namespace between LONGSPAN_TARGET_BEGIN and _END, once per instruction set, after gemm.h,
// staging.h and transpose.h.
//
// Scores lie transposed, strip[key][query]: queries in vector lanes, so softmax needs no sums across lanes, the band's
// edge is a range of lanes that moves by one from key to key, and every product reads one operand by broadcast and the
// other by whole rows.

struct Band {  // query i < count, at key place `place` + i, sees the keys from `left` before to `right` after that
  int64_t place, count, left, right;
};

template <class T, int Lanes>
struct BandTiles {
  using V = Simd<T, Lanes>;
  using Vec = typename V::Vec;
  static constexpr int Q = kQueryBlock;
  static constexpr int query_vectors = Q / Lanes;
  static constexpr int score_columns = 3;  // vectors of queries in one register tile of scores
  static constexpr int score_rows = RegisterTile<Lanes>::rows(score_columns);
  static constexpr int64_t key_tile = 96;  // strip and rows of a tile about fill the first cache
  static constexpr int64_t slack = 16;     // rows that a register tile may touch past the last key
  static constexpr T log2e = T(1.4426950408889634), ln2 = T(0.6931471805599453);
  static_assert(Q % Lanes == 0 && key_tile % score_rows == 0);

  const int64_t D, width;  // head size, and that padded to whole vectors

  explicit BandTiles(int64_t D) : D(D), width(padded(D)) {}

  static int64_t padded(int64_t n) { return (n + Lanes - 1) / Lanes * Lanes; }
  static constexpr T infinity() { return T(__builtin_inf()); }

  // to[d][query] = factor * rows[query][d], zero past the last query; `staged` is scratch [48][width].
  void stage_transposed(
      T* to, const Rows& rows, int64_t batch, int64_t head, int64_t token, int64_t step, int64_t count, T factor,
      T* staged) const {
    read_rows(staged, width, rows, batch, head, token, step, count, D);
    for (int64_t i = count * width; i < Q * width; ++i) staged[i] = 0;
    transpose_rows<T, Lanes>(staged, width, Q, factor, to, Q);
  }

  // Keys visible to some query of lanes [lane, lane + lanes), within the tile [k0, k1).
  static void keys_of(const Band& band, int64_t lane, int64_t lanes, int64_t k0, int64_t k1, int64_t& a, int64_t& b) {
    a = band.place + lane - band.left > k0 ? band.place + lane - band.left : k0;
    b = band.place + lane + lanes + band.right < k1 ? band.place + lane + lanes + band.right : k1;
    if (b < a) b = a;
  }

  // to[key - k0][query] (+)= sum_d rows[key - k0][d] columns_t[d][query], where a register tile has pairs of the band.
  template <bool accumulate>
  void products(const Band& band, int64_t k0, int64_t k1, const T* rows, const T* columns_t, T* to) const {
    for (int64_t k = k0; k < k1; k += score_rows) {
      const int64_t low = k - band.place - band.right, high = k + score_rows - 1 - band.place + band.left;
      if (high < 0 || low >= band.count) continue;
      const int first = low > 0 ? int(low / Lanes) : 0;
      const int last = int((high < band.count - 1 ? high : band.count - 1) / Lanes) + 1;
      const T* a = rows + (k - k0) * width;
      by_width<score_columns>(first, last, [&](auto columns, int v) {
        micro_gemm<T, Lanes, score_rows, columns(), Walk::rows, accumulate>(
            a, width, columns_t + v * Lanes, Q, D, to + (k - k0) * Q + v * Lanes, Q);
      });
    }
  }

  // to[query][d] (+)= sum_key weights[key - k0][query] rows[key - k0][d]
  template <bool accumulate>
  void gather(const Band& band, int64_t k0, int64_t k1, const T* weights, const T* rows, T* to) const {
    by_width<RegisterTile<Lanes>::widest>(0, int(width / Lanes), [&](auto columns, int v) {
      constexpr int group = RegisterTile<Lanes>::rows(columns());
      for (int64_t q = 0; q < band.count; q += group) {
        int64_t a, b;
        keys_of(band, q, group, k0, k1, a, b);
        micro_gemm<T, Lanes, group, columns(), Walk::columns, accumulate>(
            weights + (a - k0) * Q + q, Q, rows + (a - k0) * width + v * Lanes, width, b - a,
            to + q * width + v * Lanes, width);
      }
    });
  }

  // to[key - k0][d] += sum_query weights[key - k0][query] rows[query][d]
  void scatter(const Band& band, int64_t k0, int64_t k1, const T* weights, const T* rows, T* to) const {
    by_width<RegisterTile<Lanes>::widest>(0, int(width / Lanes), [&](auto columns, int v) {
      constexpr int group = RegisterTile<Lanes>::rows(columns());
      auto product = [&](auto size, int64_t k) {
        const int64_t low = k - band.place - band.right, high = k + size() - 1 - band.place + band.left;
        const int64_t a = low > 0 ? low : 0, b = high + 1 < band.count ? high + 1 : band.count;
        if (a >= b) return;
        micro_gemm<T, Lanes, size(), columns(), Walk::rows, true>(
            weights + (k - k0) * Q + a, Q, rows + a * width + v * Lanes, width, b - a,
            to + (k - k0) * width + v * Lanes, width);
      };
      int64_t k = k0;
      for (; k + group <= k1; k += group) product(std::integral_constant<int, group>{}, k);
      for (; k < k1; ++k) product(std::integral_constant<int, 1>{}, k);
    });
  }
};
