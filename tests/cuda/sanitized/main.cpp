// The kernels on the emulator without torch, against plain loops over pairs: what runs under AddressSanitizer and
// ThreadSanitizer. Arrays have their exact sizes on the heap, so that one element too far shows. Of one element type,
// SANITIZED_TYPE: as half, compiled with the kernels of that type alone.
//
//     main [seeds, 1] [only cases whose name contains]
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "cuda/attention.h"

namespace {

using namespace longspan::cuda;

struct Case {
  const char* name;
  int B = 1, H = 1, T, S, D;
  // Bands.
  std::vector<int> left, right, step;
  // Chunks; rounds > 0 makes it one of them.
  int rounds = 0, chunk = 0, before = 0, after = 0;
  bool wrap = false, causal = false, same_bucket = false, shared = false;
  bool masked = false;
  double dropout = 0;
};

// How often query i sees key j in head h.
struct Visibility {
  const Case& c;
  const std::vector<int>&order, &first;
  const std::vector<char>& mask;

  int slot(int h, int round, int token) const {
    for (int s = 0; s < c.T; ++s)
      if (order[(size_t(h) * c.rounds + round) * c.T + s] == token) return s;
    std::abort();
  }
  int count(int h, int i, int j) const {
    if (!mask[j]) return 0;
    if (!c.rounds) {
      const int distance = j - (i + c.S - c.T), step = c.step[h];
      return distance % step == 0 && distance / step >= -c.left[h] && distance / step <= c.right[h];
    }
    if ((c.shared && i == j) || (c.causal && j > i)) return 0;
    const int chunks = (c.T + c.chunk - 1) / c.chunk, total = chunks * c.rounds;
    int seen = 0;
    for (int r = 0; r < c.rounds; ++r)
      for (int other = 0; other < c.rounds; ++other) {
        const int query_slot = slot(h, r, i), key_slot = slot(h, other, j);
        const int own = r * chunks + query_slot / c.chunk, their = other * chunks + key_slot / c.chunk;
        auto bucket = [&](int round, int s) { return first[(size_t(h) * c.rounds + round) * c.T + s] + round * c.T; };
        if (c.same_bucket && bucket(r, query_slot) != bucket(other, key_slot)) continue;
        for (int offset = -c.before; offset <= c.after; ++offset) {
          if (c.wrap)
            seen += ((own + offset) % total + total) % total == their;
          else
            seen += own + offset == their && r == other;
        }
      }
    return seen;
  }
};

template <class T>
class Run {
 public:
  explicit Run(const Case& c) : c_(c), random_(c.T * 31 + c.D) {
    const size_t queries = size_t(c.B) * c.H * c.T * c.D, keys = size_t(c.B) * c.H * c.S * c.D;
    query_ = numbers(queries), key_ = c.shared ? query_ : numbers(keys), value_ = numbers(keys);
    grad_out_ = numbers(queries);
    for (auto* rows : {&out_, &grad_query_}) rows->assign(queries, T(NAN));
    for (auto* rows : {&grad_key_, &grad_value_}) rows->assign(keys, T(NAN));
    const size_t rows = size_t(c.B) * c.H * c.T;
    lse_.assign(rows, NAN), delta_.assign(rows, NAN), factor_.assign(rows, NAN);
    mask_.assign(c.S, 1);
    if (c.masked)
      for (char& seen : mask_) seen = random_() % 4 != 0;
    const size_t slots = size_t(c.H) * c.rounds * c.T;
    order_.resize(slots), first_.resize(slots);
    for (size_t row = 0; row < slots; row += c.T) {
      std::vector<std::pair<int, int>> sorted;
      for (int t = 0; t < c.T; ++t) sorted.push_back({int(random_() % 3), t});
      std::sort(sorted.begin(), sorted.end());
      for (int s = 0; s < c.T; ++s) {
        order_[row + s] = sorted[s].second;
        first_[row + s] = s && sorted[s].first == sorted[s - 1].first ? first_[row + s - 1] : s;
      }
    }
  }

  bool agrees() {
    launch();
    double worst = 0;
    for (int h = 0; h < c_.H; ++h) worst = std::max(worst, compare(h));
    const double allowed = sizeof(T) == 8 ? 1e-12 : sizeof(T) == 4 ? 3e-6 : std::is_same_v<T, half> ? 5e-3 : 4e-2;
    const bool good = worst < allowed;  // not with NaN
    std::printf("%s %s: off by %.1e\n", good ? "ok  " : "FAIL", c_.name, worst);
    return good;
  }

 private:
  std::vector<T> numbers(size_t count) {
    std::vector<T> made(count);
    std::uniform_real_distribution<float> draw(-1.2f, 1.2f);
    for (T& x : made) x = T(draw(random_));
    return made;
  }
  template <class U>
  Rows<U> rows(U* data, int length) const {
    return {data, int64_t(c_.H) * length * c_.D, int64_t(length) * c_.D, c_.D};
  }
  double scale() const { return c_.shared ? 1 : 0.3; }

  void launch() {
    Problem<T> p{};
    Pattern& pattern = p.pattern;
    pattern.B = c_.B, pattern.H = pattern.heads = c_.H, pattern.T = c_.T, pattern.S = c_.S, pattern.shares = 1;
    pattern.chunked = c_.rounds > 0, pattern.causal = c_.causal, pattern.shared = c_.shared;
    if (c_.masked) pattern.key_mask = reinterpret_cast<const bool*>(mask_.data());
    for (int h = 0; h < c_.H && !c_.rounds; ++h)
      pattern.bands.left[h] = c_.left[h], pattern.bands.right[h] = c_.right[h], pattern.bands.step[h] = c_.step[h];
    Chunks& chunks = pattern.chunks;
    chunks.R = c_.rounds, chunks.chunk = c_.chunk, chunks.before = c_.before, chunks.after = c_.after;
    chunks.wrap = c_.wrap, chunks.same_bucket = c_.same_bucket, chunks.reach = kNobody;
    chunks.order = order_.data(), chunks.first = first_.data();
    p.D = c_.D, p.scale = Wide<T>(scale()), p.aligned = c_.D % (16 / int(sizeof(T))) == 0;
    if (c_.dropout > 0) p.dropout_seed = &seed_, p.dropout_threshold = uint32_t(c_.dropout * 4294967296.0);
    p.keep_scale = Wide<T>(1 / (1 - c_.dropout));
    const T *query = query_.data(), *key = key_.data(), *value = value_.data(), *grad_out = grad_out_.data();
    p.query = rows(query, c_.T), p.key = rows(c_.shared ? query : key, c_.S), p.value = rows(value, c_.S);
    p.out = rows(out_.data(), c_.T), p.lse = lse_.data();
    std::vector<Wide<T>> running, query_sums, value_sums;
    if (c_.rounds > 1) running.assign(query_.size(), NAN), p.running = rows(running.data(), c_.T);
    if (c_.shared) {
      launch_key_factors(p, factor_.data(), nullptr);
      p.factor = factor_.data();
    }
    const int rounds = std::max(1, c_.rounds);
    for (int round = 0; round < rounds; ++round) {
      chunks.round = round, p.resume = round > 0, p.last = round == rounds - 1;
      launch_forward(p, nullptr);
    }
    p.grad_out = rows(grad_out, c_.T);
    p.grad_query = rows(grad_query_.data(), c_.T), p.grad_key = rows(grad_key_.data(), c_.S);
    p.grad_value = rows(grad_value_.data(), c_.S);
    if (c_.shared) {
      query_sums.assign(query_.size(), 0), value_sums.assign(value_.size(), 0);
      p.query_sums = rows(query_sums.data(), c_.T), p.value_sums = rows(value_sums.data(), c_.T);
    }
    launch_query_deltas(p, rows(static_cast<const T*>(out_.data()), c_.T), nullptr, delta_.data(), nullptr);
    p.delta = delta_.data();
    for (int round = 0; round < rounds; ++round) {
      chunks.round = round;
      for (const Role role : {Role::queries, Role::keys}) launch_backward(p, role, nullptr);
    }
    for (size_t i = 0; c_.shared && i < query_sums.size(); ++i)
      grad_query_[i] = T(query_sums[i]), grad_value_[i] = T(value_sums[i]);
  }

  double keep(int h, int i, int j) const {
    if (c_.dropout == 0) return 1;
    const longspan::Dropout dropout = longspan::make_dropout(seed_, c_.dropout);
    uint32_t drawn;
    const uint32_t word = longspan::next_counter(
        longspan::next_counter(longspan::next_counter(dropout.stream, 0), uint32_t(h)), uint32_t(i));
    longspan::draw(word, longspan::second_word(word), uint32_t(j), drawn);
    return drawn >= dropout.threshold ? 1 / (1 - c_.dropout) : 0;
  }

  // The largest difference of one head, of the first example.
  double compare(int h) {
    const int T_ = c_.T, S = c_.S, D = c_.D;
    const Visibility visibility{c_, order_, first_, mask_};
    auto at = [&](const std::vector<T>& rows, int length, int token, int d) {
      return double(Wide<T>(rows[(size_t(h) * length + token) * D + d]));
    };
    std::vector<double> unit(S, 1), dq(size_t(T_) * D), dk(size_t(S) * D), dv(size_t(S) * D);
    if (c_.shared)
      for (int j = 0; j < S; ++j) {
        double sum = D * 1e-6;
        for (int d = 0; d < D; ++d) sum += at(query_, T_, j, d) * at(query_, T_, j, d);
        unit[j] = 1 / std::sqrt(sum);
      }
    double worst = 0;
    auto see = [&](double got, double wanted) {
      const double gap = std::fabs(got - wanted) / std::max(1.0, std::fabs(wanted));
      if (!(gap <= worst)) worst = std::isnan(gap) ? INFINITY : gap;
    };
    for (int i = 0; i < T_; ++i) {
      std::vector<double> p(S, 0), kept(S, 0);
      double highest = -INFINITY, sum = 0;
      for (int j = 0; j < S; ++j) {
        const int count = visibility.count(h, i, j);
        p[j] = -INFINITY;
        if (!count) continue;
        double product = 0;
        for (int d = 0; d < D; ++d) product += at(query_, T_, i, d) * at(key_, S, j, d);
        p[j] = product * unit[j] * scale() + std::log(double(count));
        highest = std::max(highest, p[j]);
      }
      const bool alone = highest == -INFINITY;
      for (int j = 0; j < S; ++j) sum += p[j] = alone ? 0 : std::exp(p[j] - highest);
      for (int j = 0; j < S; ++j) p[j] = alone ? 0 : p[j] / sum, kept[j] = p[j] * keep(h, i, j);
      double delta = 0;
      for (int d = 0; d < D; ++d) {
        double out = alone && c_.shared ? at(value_, S, i, d) : 0;
        for (int j = 0; j < S; ++j) out += kept[j] * at(value_, S, j, d);
        see(at(out_, T_, i, d), out);
        delta += out * at(grad_out_, T_, i, d);
        if (alone && c_.shared) dv[size_t(i) * D + d] += at(grad_out_, T_, i, d);
      }
      if (!alone) see(lse_[size_t(h) * T_ + i], highest + std::log(sum));
      for (int j = 0; j < S; ++j) {
        if (p[j] == 0) continue;
        double product = 0;
        for (int d = 0; d < D; ++d) product += at(grad_out_, T_, i, d) * at(value_, S, j, d);
        const double ds = (kept[j] * product - p[j] * delta) * scale();
        for (int d = 0; d < D; ++d) {
          dq[size_t(i) * D + d] += ds * at(key_, S, j, d) * unit[j];
          dk[size_t(j) * D + d] += ds * at(query_, T_, i, d);
          dv[size_t(j) * D + d] += kept[j] * at(grad_out_, T_, i, d);
        }
      }
    }
    if (c_.shared)  // the gradient of x by way of x / |x|
      for (int j = 0; j < S; ++j) {
        double along = 0;
        for (int d = 0; d < D; ++d) along += dk[size_t(j) * D + d] * at(query_, T_, j, d) * unit[j];
        for (int d = 0; d < D; ++d)
          dq[size_t(j) * D + d] += unit[j] * (dk[size_t(j) * D + d] - along * at(query_, T_, j, d) * unit[j]);
      }
    for (int i = 0; i < T_; ++i)
      for (int d = 0; d < D; ++d) see(at(grad_query_, T_, i, d), dq[size_t(i) * D + d]);
    for (int j = 0; j < S; ++j)
      for (int d = 0; d < D; ++d) {
        see(at(grad_value_, S, j, d), dv[size_t(j) * D + d]);
        if (!c_.shared) see(at(grad_key_, S, j, d), dk[size_t(j) * D + d]);
      }
    return worst;
  }

  Case c_;
  std::mt19937 random_;
  int64_t seed_ = 0x123456789ABCDEF;
  std::vector<T> query_, key_, value_, grad_out_, out_, grad_query_, grad_key_, grad_value_;
  std::vector<Wide<T>> lse_, delta_, factor_;
  std::vector<char> mask_;
  std::vector<int> order_, first_;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  auto add = [&](Case c) { all.push_back(c); };
  add({.name = "band", .T = 100, .S = 100, .D = 64, .left = {20}, .right = {13}, .step = {1}});
  add(
      {.name = "bands by head, cached, masked",
       .H = 2,
       .T = 70,
       .S = 77,
       .D = 64,
       .left = {3, 40},
       .right = {2, 0},
       .step = {1, 3},
       .masked = true});
  add(
      {.name = "band, unaligned, dropout",
       .T = 67,
       .S = 67,
       .D = 50,
       .left = {9},
       .right = {30},
       .step = {1},
       .dropout = 0.3});
  add({.name = "band, wide", .T = 11, .S = 13, .D = 70, .left = {4}, .right = {1}, .step = {1}});
  add(
      {.name = "lsh",
       .T = 75,
       .S = 75,
       .D = 64,
       .rounds = 2,
       .chunk = 16,
       .before = 1,
       .after = 0,
       .causal = true,
       .shared = true});
  add(
      {.name = "lsh, wrapped, same bucket, masked",
       .T = 70,
       .S = 70,
       .D = 64,
       .rounds = 2,
       .chunk = 32,
       .before = 1,
       .after = 1,
       .wrap = true,
       .same_bucket = true,
       .shared = true,
       .masked = true});
  return all;
}

}  // namespace

extern "C" void longspan_emulator_configure(uint64_t seed, int threads, int64_t* counts);

int main(int argc, char** argv) {
  const int seeds = argc > 1 ? std::atoi(argv[1]) : 1;
  const char* wanted = argc > 2 ? argv[2] : "";
  int64_t counts[3];
  bool good = true;
  try {
    for (int seed = 0; seed < seeds; ++seed) {
      longspan_emulator_configure(uint64_t(seed), 1, counts);
      for (const Case& c : cases()) {
        if (!std::strstr(c.name, wanted)) continue;
        good = Run<SANITIZED_TYPE>(c).agrees() && good;
      }
    }
  } catch (const std::exception& error) {
    std::printf("FAIL %s\n", error.what());
    return 1;
  }
  return good ? 0 : 1;
}
