// What the kernel of chunk attention holds for one item, in one buffer of scratch memory.
// Included inside an unnamed namespace between LONGSPAN_TARGET_BEGIN and _END, once per instruction set, after simd.h.

template <class T, int Lanes>
struct WindowsBuffers {
  using Bits = typename Simd<T, Lanes>::Bits;
  static constexpr int Q = kWindowQueries;
  static constexpr int64_t tile_keys = 128;
  static constexpr int64_t slack = 24;  // rows that a register tile may touch past the last

  // A staged chunk of keys and values.
  struct Entry {
    int64_t chunk = -1, round, begin, count;  // slots begin .. begin + count of the round
    bool in_tile = false;                     // held until the tile is done
    T *keys, *values, *factors;               // [chunk + slack][width], the factor that made each key a unit vector
    T *grad_keys, *grad_values;
    Bits* tokens;
    bool* hidden;
  };
  struct Piece {  // keys from .. from + count of an entry, at rows row .. of the strip
    Entry* entry;
    int64_t from, count, row;
  };

  const int64_t num_entries;
  Entry* entries;
  Piece* pieces;                          // of the tile
  T *queries_t, *strip, *sums;            // [width][64], [128 + slack][64], [64 + slack][width]
  T *queries, *grads, *grads_t, *strip2;  // [64 + slack][width] twice, [width][64], as strip
  size_t bytes;

  static int64_t padded(int64_t n) { return (n + Lanes - 1) / Lanes * Lanes; }

  // Lays everything out from `base` on, zero: register tiles read past the last row. Without a base only counts bytes.
  WindowsBuffers(const WindowsProblem& problem, bool backward, char* base)
      : num_entries(problem.before + 1 + problem.after < 8 ? problem.before + 1 + problem.after : 8) {
    if (base) std::memset(base, 0, WindowsBuffers(problem, backward, nullptr).bytes);
    const int64_t width = padded(problem.D), strips = (tile_keys + slack) * Q, block = (Q + slack) * width;
    ScratchPieces at{base};
    auto numbers = [&at](int64_t count) { return at.template take<T>(count); };
    entries = at.template take<Entry>(num_entries);
    pieces = at.template take<Piece>(tile_keys);
    queries_t = numbers(width * Q), strip = numbers(strips), sums = numbers(block);
    queries = numbers(backward ? block : 0), grads = numbers(backward ? block : 0);
    grads_t = numbers(backward ? width * Q : 0), strip2 = numbers(backward ? strips : 0);
    const int64_t rows = problem.chunk + slack;
    for (int64_t i = 0; i < num_entries; ++i) {
      Entry nowhere, &entry = base ? *new (entries + i) Entry() : nowhere;
      entry.keys = numbers(rows * width), entry.values = numbers(rows * width), entry.factors = numbers(rows);
      entry.grad_keys = numbers(backward ? rows * width : 0), entry.grad_values = numbers(backward ? rows * width : 0);
      entry.tokens = at.template take<Bits>(rows);
      entry.hidden = at.template take<bool>(rows);
    }
    bytes = size_t(at.next - base);
  }
};
