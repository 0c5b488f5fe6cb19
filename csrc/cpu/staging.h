// Copies between tensors of any dtype and stride and contiguous rows of T, padded with zeros to whole vectors: kernels
// read and write only the latter. A strided head (row stride = hidden size) would otherwise fall on few cache sets.
// Included inside an unnamed namespace between LONGSPAN_TARGET_BEGIN and _END, once per instruction set.

static inline float bf16_to_float(uint16_t x) {
  const uint32_t bits = uint32_t(x) << 16;
  float y;
  __builtin_memcpy(&y, &bits, 4);
  return y;
}

static inline uint16_t float_to_bf16(float x) {  // round to nearest even; NaN stays NaN
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return x != x ? uint16_t(0x7fc0) : uint16_t(rounded);
}

template <class T>
static inline void read_row(T* to, const void* from, Dtype dtype, int64_t n) {
  switch (dtype) {
    case Dtype::f32:
      for (int64_t i = 0; i < n; ++i) to[i] = T(static_cast<const float*>(from)[i]);
      break;
    case Dtype::f64:
      for (int64_t i = 0; i < n; ++i) to[i] = T(static_cast<const double*>(from)[i]);
      break;
    case Dtype::bf16:
      for (int64_t i = 0; i < n; ++i) to[i] = T(bf16_to_float(static_cast<const uint16_t*>(from)[i]));
      break;
    case Dtype::f16:
      for (int64_t i = 0; i < n; ++i)
        to[i] = T(torch::headeronly::detail::fp16_ieee_to_fp32_value(static_cast<const uint16_t*>(from)[i]));
      break;
  }
}

template <class T>
static inline void write_row(void* to, const T* from, T factor, Dtype dtype, int64_t n) {
  switch (dtype) {
    case Dtype::f32:
      for (int64_t i = 0; i < n; ++i) static_cast<float*>(to)[i] = float(from[i] * factor);
      break;
    case Dtype::f64:
      for (int64_t i = 0; i < n; ++i) static_cast<double*>(to)[i] = double(from[i] * factor);
      break;
    case Dtype::bf16:
      for (int64_t i = 0; i < n; ++i) static_cast<uint16_t*>(to)[i] = float_to_bf16(float(from[i] * factor));
      break;
    case Dtype::f16:
      for (int64_t i = 0; i < n; ++i)
        static_cast<uint16_t*>(to)[i] = torch::headeronly::detail::fp16_ieee_from_fp32_value(float(from[i] * factor));
      break;
  }
}

static inline int64_t element_size(Dtype dtype) { return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2; }

// The address of row `token` of one head.
static inline char* row_of(const Rows& rows, int64_t batch, int64_t head, int64_t token) {
  const int64_t at = batch * rows.batch + head * rows.head + token * rows.row;
  return static_cast<char*>(rows.data) + at * element_size(rows.dtype);
}

// `count` rows `step` tokens apart, each padded with zeros to `width`.
template <class T>
static inline void read_rows(
    T* to, int64_t width, const Rows& rows, int64_t batch, int64_t head, int64_t token, int64_t step, int64_t count,
    int64_t D) {
  for (int64_t i = 0; i < count; ++i, to += width) {
    read_row(to, row_of(rows, batch, head, token + i * step), rows.dtype, D);
    for (int64_t d = D; d < width; ++d) to[d] = 0;
  }
}
