// Banded attention forward in bfloat16 with float sums, on processors that multiply pairs of bfloat16.
// Included inside an unnamed namespace between LONGSPAN_TARGET_BEGIN and _END, after simd.h and staging.h.
//
// Both products are the same primitive, C [rows][32 queries] += A [rows][pairs] B [pairs][32 queries], on 32-bit words
// that hold two neighbours of the summed dimension:
//     scores  [keys][queries]      = keys [keys][D / 2 words]        x queries [D / 2 words][queries]
//     sums    [D][queries]        += values^T [D][keys / 2 words]    x weights [keys / 2 words][queries]
// so one kernel serves matrix tiles (AMX) and dot products of vectors (AVX512_BF16); Engine supplies it. Queries lie in
// vector lanes as in banded_kernel.h, where masks and running maxima are explained.

typedef float Vec16 __attribute__((vector_size(64)));
typedef uint32_t Words16 __attribute__((vector_size(64)));
typedef Simd<float, 16> V16;

// rows[i][j] <-> rows[j][i], 16 x 16 words in registers: four rounds of exchanging halves.
static inline __attribute__((always_inline)) void transpose16(Words16 (&rows)[16]) {
  for (int i = 0; i < 8; ++i) {
    const Words16 a = rows[i], b = rows[i + 8];
    rows[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    rows[i + 8] = __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
  for (int half = 0; half < 16; half += 8)
    for (int i = half; i < half + 4; ++i) {
      const Words16 a = rows[i], b = rows[i + 4];
      rows[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
      rows[i + 4] = __builtin_shufflevector(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    }
  for (int quarter = 0; quarter < 16; quarter += 4)
    for (int i = quarter; i < quarter + 2; ++i) {
      const Words16 a = rows[i], b = rows[i + 2];
      rows[i] = __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
      rows[i + 2] = __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    }
  for (int i = 0; i < 16; i += 2) {
    const Words16 a = rows[i], b = rows[i + 1];
    rows[i] = __builtin_shufflevector(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
    rows[i + 1] = __builtin_shufflevector(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
  }
}

static inline __attribute__((always_inline)) Words16 load_words16(const void* p) {
  return V16::load_words(static_cast<const uint32_t*>(p));
}
static inline __attribute__((always_inline)) void store_words16(void* p, Words16 x) {
  V16::store(static_cast<float*>(p), (Vec16)x);
}

// 2^x for x <= 0 to 3e-6, more than the 8 bits of bfloat16 weights can show; 2^-126 for anything smaller, hidden keys
// included: nothing beside the others in a sum of bfloat16.
static inline __attribute__((always_inline)) Vec16 exp2_short(Vec16 x) {
  const Vec16 lowest = V16::all(-126.f), magic = V16::all(12582912.f);
  x = V16::max(lowest, x);
  const Vec16 rounded = x + magic;
  const Vec16 f = x - (rounded - magic);
  Vec16 p = V16::all(9.58285e-3f);
  p = p * f + 5.590642e-2f;
  p = p * f + 2.4024099e-1f;
  p = p * f + 6.9312419e-1f;
  p = p * f + 1.f;
  return (Vec16)((Words16)p + ((Words16)rounded << 23));
}

// Two weights of each lane as one word of bfloat16: the even key below, the odd key above. Rounds to nearest.
static inline __attribute__((always_inline)) Words16 pair_words(Vec16 even, Vec16 odd) {
  return (((Words16)even + 0x8000u) >> 16) | (((Words16)odd + 0x8000u) & 0xffff0000u);
}

template <class Engine>
struct BandedBf16 : BandedRun {
  static constexpr int Q = 32;              // queries of one panel: two vectors, two matrix tiles
  static constexpr int64_t panels = 4;      // panels that share a tile of keys while it is near
  static constexpr int64_t key_group = 32;  // keys of one column of matrix tiles
  static constexpr int64_t key_tile = 256;
  static constexpr float log2e = 1.4426950408889634f, ln2 = 0.6931471805599453f;

  const int64_t D, width, depth;  // head size, padded to 32, and in words
  const int64_t groups;           // of keys
  const float scale;              // to units of log 2

  uint32_t *keys, *values_t;  // [groups * 32][depth], [width / 32][groups][32][16]

  struct Panel {
    uint32_t* queries;  // [depth][32]
    float* sums;        // [width][32]
    float row_max[Q], row_sum[Q];
    int64_t first, count, place;  // queries of the chain, and where the first stands
    int64_t begin, end;           // keys, in whole groups from keys_begin
  } panel[panels];
  float* strip;       // [key_tile][32]
  uint32_t* weights;  // [key_tile / 2][32]

  static int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
  static size_t scratch_bytes(const BandedProblem& problem, int64_t num_keys, bool) {
    const int64_t width = padded(problem.D, 32), rows = padded(num_keys, key_group) + key_group;
    const int64_t words = rows * width + panels * (width / 2 * Q + width * Q) + key_tile * Q + key_tile / 2 * Q;
    return words * 4 + 16 * 64;
  }

  BandedBf16(const BandedProblem& problem, const BandedItem& item, void* scratch)
      : BandedRun(problem, item, key_group),
        D(problem.D),
        width(padded(problem.D, 32)),
        depth(width / 2),
        groups(padded(num_keys(), key_group) / key_group),
        scale(float(problem.scale) * log2e) {
    ScratchPieces pieces{static_cast<char*>(scratch)};
    keys = pieces.take<uint32_t>(groups * key_group * depth);
    values_t = pieces.take<uint32_t>(groups * width * 16);
    strip = pieces.take<float>(key_tile * Q);
    weights = pieces.take<uint32_t>(key_tile / 2 * Q);
    for (Panel& p : panel) {
      p.queries = pieces.take<uint32_t>(depth * Q);
      p.sums = pieces.take<float>(width * Q);
    }
  }

  // One row of bfloat16, padded with zeros to `width`.
  void copy_row(uint32_t* to, const void* from) const {
    __builtin_memcpy(to, from, D * 2);
    if (D < width) __builtin_memset(reinterpret_cast<uint16_t*>(to) + D, 0, (width - D) * 2);
  }

  void stage_keys() {
    for (int64_t g = 0; g < groups; ++g) {
      uint32_t rows[key_group][16];  // of values: 32 keys x 32 of their numbers
      for (int64_t i = 0; i < key_group; ++i) {
        const int64_t place = keys_begin + g * key_group + i;
        uint32_t* to = keys + (g * key_group + i) * depth;
        if (place < keys_end)
          copy_row(to, row_of(problem.key, item.batch, item.head, key_token(place)));
        else
          __builtin_memset(to, 0, width * 2);
      }
      for (int64_t d = 0; d < width; d += 32) {
        const int64_t n = D - d < 32 ? D - d : 32;
        for (int64_t i = 0; i < key_group; ++i) {
          const int64_t place = keys_begin + g * key_group + i;
          if (n < 32 || place >= keys_end) __builtin_memset(rows[i], 0, 64);
          if (place < keys_end)
            __builtin_memcpy(rows[i], row_of(problem.value, item.batch, item.head, key_token(place)) + d * 2, n * 2);
        }
        Words16 even[16], odd[16];  // of key pairs: even and odd numbers d
        for (int i = 0; i < 16; ++i) {
          const Words16 a = load_words16(rows[2 * i]), b = load_words16(rows[2 * i + 1]);
          even[i] = (a & 0xffffu) | (b << 16);
          odd[i] = (a >> 16) | (b & 0xffff0000u);
        }
        transpose16(even);
        transpose16(odd);
        uint32_t* to = values_t + (d / 32 * groups + g) * 32 * 16;
        for (int i = 0; i < 16; ++i) {
          store_words16(to + (2 * i) * 16, even[i]);
          store_words16(to + (2 * i + 1) * 16, odd[i]);
        }
      }
    }
  }

  void start_panel(Panel& p, int64_t first) {
    p.first = first;
    p.count = item.end - first < Q ? item.end - first : Q;
    p.place = first + chain.shift;
    p.begin = clamp(p.place - left);
    p.end = clamp(p.place + p.count + right);
    p.begin = keys_begin + (p.begin - keys_begin) / key_group * key_group;
    p.end = p.end <= p.begin ? p.begin : keys_begin + padded(p.end - keys_begin, key_group);
    alignas(64) uint32_t rows[16][16];
    for (int64_t q = 0; q < Q; q += 16)
      for (int64_t d = 0; d < width; d += 32) {
        const int64_t n = D - d < 32 ? D - d : 32;
        Words16 block[16];
        for (int i = 0; i < 16; ++i) {
          const bool real = q + i < p.count;
          if (n < 32 || !real) __builtin_memset(rows[i], 0, 64);
          if (real)
            __builtin_memcpy(
                rows[i], row_of(problem.query, item.batch, item.head, query_token(first + q + i)) + d * 2, n * 2);
          block[i] = load_words16(rows[i]);
        }
        transpose16(block);
        for (int i = 0; i < 16; ++i) store_words16(p.queries + (d / 2 + i) * Q + q, block[i]);
      }
    for (int i = 0; i < Q; ++i) p.row_max[i] = -__builtin_inff(), p.row_sum[i] = 0;
    __builtin_memset(p.sums, 0, width * Q * 4);
  }

  void hide_masked_keys(int64_t a, int64_t b) {
    if (!problem.key_mask) return;
    for (int64_t k = a; k < b && k < keys_end; ++k)
      if (hidden(k))
        for (int v = 0; v < Q; v += 16) V16::store(strip + (k - a) * Q + v, V16::all(-__builtin_inff()));
  }

  // Keys a .. b of the strip become words of weights; the panel's sums shrink where its maximum grew.
  void softmax(Panel& p, int64_t a, int64_t b) {
    bool changed = false;
    alignas(64) float shrink[Q];
    for (int lane = 0; lane < Q; lane += 16) {
      float* column = strip + lane - a * Q;
      const Words16 index = V16::lane_index();
      const int64_t from = p.place + lane + 15 - left, to = p.place + lane + right + 1;  // seen by all lanes
      const int64_t last = b < keys_end ? b : keys_end;
      const int64_t inner_begin = from < a ? a : from < b ? from : b;
      const int64_t inner_end = to < inner_begin ? inner_begin
                                : to < last      ? to
                                                 : (last > inner_begin ? last : inner_begin);
      Vec16 highest = V16::load(p.row_max + lane), other = highest;
      auto edge = [&](int64_t k) {
        const int64_t low = k - p.place - right - lane, high = k - p.place + left - lane;
        const uint32_t first = low > 0 ? (low < 16 ? uint32_t(low) : 16u) : 0u;
        const uint32_t end = high < 0 || k >= keys_end ? 0u : (high < 16 ? uint32_t(high) + 1 : 16u);
        const Vec16 x = (index >= first) & (index < end) ? V16::load(column + k * Q) : V16::all(-__builtin_inff());
        V16::store(column + k * Q, x);
        highest = V16::max(highest, x);
      };
      for (int64_t k = a; k < inner_begin; ++k) edge(k);
      int64_t k = inner_begin;
      for (; k + 1 < inner_end; k += 2) {
        highest = V16::max(highest, V16::load(column + k * Q));
        other = V16::max(other, V16::load(column + (k + 1) * Q));
      }
      if (k < inner_end) highest = V16::max(highest, V16::load(column + k * Q));
      for (k = inner_end; k < b; ++k) edge(k);
      highest = V16::max(highest, other);
      const Vec16 shift = highest == V16::all(-__builtin_inff()) ? Vec16{} : highest * scale;
      const Vec16 factor = V16::exp2(V16::load(p.row_max + lane) * scale - shift);
      V16::store(p.row_max + lane, highest);
      V16::store(shrink + lane, factor);
      for (int i = 0; i < 16; ++i) changed |= !(factor[i] == 1.f);
      Vec16 sum = V16::load(p.row_sum + lane) * factor, sum2{};
      for (k = a; k < b; k += 2) {
        const Vec16 even = exp2_short(V16::load(column + k * Q) * scale - shift);
        const Vec16 odd = exp2_short(V16::load(column + (k + 1) * Q) * scale - shift);
        sum += even;
        sum2 += odd;
        store_words16(weights + (k - a) / 2 * Q + lane, pair_words(even, odd));
      }
      V16::store(p.row_sum + lane, sum + sum2);
    }
    if (!changed) return;
    const Vec16 first = V16::load(shrink), second = V16::load(shrink + 16);
    for (int64_t d = 0; d < width; ++d) {
      V16::store(p.sums + d * Q, V16::load(p.sums + d * Q) * first);
      V16::store(p.sums + d * Q + 16, V16::load(p.sums + d * Q + 16) * second);
    }
  }

  void finish(const Panel& p) {
    for (int64_t q = 0; q < Q && q < p.count; q += 16)
      for (int64_t d = 0; d < width; d += 16) {
        Words16 block[16];
        for (int i = 0; i < 16; ++i) block[i] = load_words16(p.sums + (d + i) * Q + q);
        transpose16(block);
        const int64_t n = D - d < 16 ? D - d : 16;
        for (int64_t i = 0; i < 16 && q + i < p.count; ++i) {
          const bool nothing = p.row_max[q + i] == -__builtin_inff();
          alignas(64) float row[16];
          store_words16(row, block[i]);
          char* to = row_of(problem.out, item.batch, item.head, query_token(p.first + q + i)) + d * 2;
          write_row(to, row, nothing ? 0.f : 1.f / p.row_sum[q + i], Dtype::bf16, n > 0 ? n : 0);
        }
      }
    for (int64_t i = 0; i < p.count; ++i) {
      const int64_t at = statistics_at(p.first + i);
      const bool nothing = p.row_max[i] == -__builtin_inff();
      static_cast<float*>(problem.lse)[at] =
          nothing ? -__builtin_inff() : (p.row_max[i] * scale + std::log2(p.row_sum[i])) * ln2;
    }
  }

  void forward() {
    Engine engine;
    stage_keys();
    for (int64_t first = item.begin; first < item.end; first += panels * Q) {
      int64_t used = 0, begin = keys_end, end = keys_begin;
      for (; used < panels && first + used * Q < item.end; ++used) {
        start_panel(panel[used], first + used * Q);
        if (panel[used].begin == panel[used].end) continue;
        begin = panel[used].begin < begin ? panel[used].begin : begin;
        end = panel[used].end > end ? panel[used].end : end;
      }
      for (int64_t k0 = begin / key_tile * key_tile; k0 < end; k0 += key_tile)
        for (int64_t i = 0; i < used; ++i) {
          Panel& p = panel[i];
          const int64_t a = p.begin > k0 ? p.begin : k0, b = p.end < k0 + key_tile ? p.end : k0 + key_tile;
          if (a >= b) continue;
          engine.product(keys + (a - keys_begin) * depth, depth, b - a, depth, p.queries, strip);
          hide_masked_keys(a, b);
          softmax(p, a, b);
          for (int64_t d = 0; d < width; d += 32)
            engine.accumulate(
                values_t + (d / 32 * groups + (a - keys_begin) / key_group) * 32 * 16, (b - a) / key_group, weights,
                p.sums + d * Q);
        }
      for (int64_t i = 0; i < used; ++i) finish(panel[i]);
    }
  }

  static void run_forward(const BandedProblem& problem, const BandedItem& item, void* scratch) {
    BandedBf16(problem, item, scratch).forward();
  }
  static constexpr BandedKernels kernels() { return {&scratch_bytes, &run_forward, nullptr}; }
};
