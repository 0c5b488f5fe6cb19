// Dropout by the place of an element, as ops/dropout.py defines it.
// Included inside an unnamed namespace between LONGSPAN_TARGET_BEGIN and _END, once per instruction set, after simd.h
// and staging.h.

template <class T, int Lanes>
struct ElementDropout {
  using V = Simd<float, Lanes>;
  using Word = typename V::Word;
  static constexpr int64_t block = 256;

  // to[i] = keep ? from[i] * scale : 0 for elements at .. at + n of a row of 4096.
  static void apply(const Dropout& dropout, uint32_t row, int64_t at, int64_t n, T* numbers) {
    const uint32_t first = next_counter(dropout.stream, row);
    const Word firsts = Word{} + first, seconds = Word{} + second_word(first);
    const T scale = T(dropout.keep_scale);
    uint32_t words[Lanes];
    for (int64_t i = 0; i < n; i += Lanes) {
      const Word key = V::lane_index() + uint32_t(at + i);
      Word draws;
      draw(firsts, seconds, key, draws);
      V::store_words(words, draws);
      const int64_t lanes = n - i < Lanes ? n - i : Lanes;
      for (int64_t j = 0; j < lanes; ++j)
        numbers[i + j] = words[j] >= dropout.threshold ? numbers[i + j] * scale : T(0);
    }
  }

  static void run(const Dropout& dropout, const char* from, char* to, Dtype dtype, int64_t begin, int64_t end) {
    T numbers[block];
    const int64_t size = element_size(dtype);
    for (int64_t i = begin; i < end;) {
      const int64_t row_end = (i / kDropoutRow + 1) * kDropoutRow, stop = row_end < end ? row_end : end;
      const int64_t n = stop - i < block ? stop - i : block;
      read_row(numbers, from + i * size, dtype, n);
      apply(dropout, uint32_t(i / kDropoutRow), i % kDropoutRow, n, numbers);
      write_row(to + i * size, numbers, T(1), dtype, n);
      i += n;
    }
  }
};

template <int Lanes>
void drop_elements(const Dropout& dropout, const void* from, void* to, Dtype dtype, int64_t begin, int64_t end) {
  const char* source = static_cast<const char*>(from);
  if (dtype == Dtype::f64)
    ElementDropout<double, Lanes>::run(dropout, source, static_cast<char*>(to), dtype, begin, end);
  else
    ElementDropout<float, Lanes>::run(dropout, source, static_cast<char*>(to), dtype, begin, end);
}
