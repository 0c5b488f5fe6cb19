// Staged chunks of keys and values, a few at a time, and the way back of their gradients.
// Included inside an unnamed namespace between LONGSPAN_TARGET_BEGIN and _END, once per instruction set, after simd.h,
// staging.h and windows_buffers.h.

template <class T, int Lanes>
struct KeyRing : WindowsBuffers<T, Lanes> {
  using Buffers = WindowsBuffers<T, Lanes>;
  using Entry = typename Buffers::Entry;
  using V = Simd<T, Lanes>;
  using Bits = typename V::Bits;
  using Buffers::entries, Buffers::num_entries, Buffers::slack;

  const WindowsProblem& problem;
  const WindowsItem& item;
  const bool backward_pass;
  const int64_t D, width;  // head size, and that padded to whole vectors
  const int64_t per_round;

  KeyRing(const WindowsProblem& problem, const WindowsItem& item, void* scratch, bool backward_pass)
      : Buffers(problem, backward_pass, static_cast<char*>(scratch)),
        problem(problem),
        item(item),
        backward_pass(backward_pass),
        D(problem.D),
        width(Buffers::padded(problem.D)),
        per_round(problem.chunks()) {}

  int64_t token_at(int64_t round, int64_t slot) const {
    return problem.order ? problem.order[problem.at_slot(item.batch, item.head, round * problem.T + slot)] : slot;
  }
  int64_t first_at(int64_t round, int64_t slot) const {
    return problem.first[problem.at_slot(item.batch, item.head, round * problem.T + slot)];
  }
  char* row_at(const Rows& rows, int64_t token) const { return row_of(rows, item.batch, item.head, token); }
  void load(T* to, const Rows& rows, int64_t token) const { read_row(to, row_at(rows, token), rows.dtype, D); }

  // The staged chunk; whoever held its place has written its gradients.
  Entry& stage(int64_t chunk) {
    Entry& entry = entries[chunk % num_entries];
    if (entry.chunk == chunk) return entry;
    if (backward_pass) release(entry);
    entry.chunk = chunk;
    entry.round = chunk / per_round;
    entry.begin = chunk % per_round * problem.chunk;
    entry.count = problem.T - entry.begin < problem.chunk ? problem.T - entry.begin : problem.chunk;
    for (int64_t i = 0; i < entry.count; ++i) {
      const int64_t token = token_at(entry.round, entry.begin + i);
      T *key = entry.keys + i * width, *value = entry.values + i * width;
      entry.tokens[i] = Bits(token);
      entry.hidden[i] = problem.key_mask && !problem.key_mask[item.batch * problem.T + token];
      load(key, problem.shared ? problem.query : problem.key, token);
      load(value, problem.value, token);
      if (problem.shared) entry.factors[i] = dot(key, key);
    }
    if (problem.shared) {
      const T least = T(D) * T(1e-6);
      for (int64_t i = 0; i < entry.count; ++i) entry.factors[i] = T(1) / std::sqrt(entry.factors[i] + least);
      for (int64_t i = 0; i < entry.count; ++i)
        for (int64_t d = 0; d < width; ++d) entry.keys[i * width + d] *= entry.factors[i];
    }
    if (backward_pass)
      for (int64_t i = 0; i < (entry.count + slack) * width; ++i) entry.grad_keys[i] = entry.grad_values[i] = 0;
    return entry;
  }

  T dot(const T* a, const T* b) const {  // over padded rows
    typename V::Vec sum{};
    for (int64_t d = 0; d < width; d += Lanes) sum += V::load(a + d) * V::load(b + d);
    return V::sum(sum);
  }

  // Adds the gradients of a staged chunk to those of its tokens: k = x f, f = (|x|^2 + D 1e-6)^(-1/2).
  void release(Entry& entry) {
    for (int64_t i = 0; entry.chunk >= 0 && i < entry.count; ++i) {
      if (entry.hidden[i]) continue;
      const int64_t token = int64_t(entry.tokens[i]);
      T* to = reinterpret_cast<T*>(row_at(problem.shared ? problem.grad_query : problem.grad_key, token));
      T* to_value = reinterpret_cast<T*>(row_at(problem.grad_value, token));
      const T *grad = entry.grad_keys + i * width, *grad_value = entry.grad_values + i * width;
      const T* key = entry.keys + i * width;
      const T factor = problem.shared ? entry.factors[i] : T(1), along = problem.shared ? dot(key, grad) : T(0);
      for (int64_t d = 0; d < D; ++d) {
        to[d] += factor * (grad[d] - along * key[d]);
        to_value[d] += grad_value[d];
      }
    }
    entry.chunk = -1;
  }
};
