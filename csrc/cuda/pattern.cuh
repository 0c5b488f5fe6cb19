// Who sees whom. A pattern cuts the rows of a head into tiles and gives the columns that each tile meets; both as
// places: which token stands there, and what decides whether a query sees a key. The same pattern is walked in two
// roles: tiles of queries that meet keys, and, for the gradients of keys, tiles of keys that meet queries.
//
// Two kinds. *Bands*: a dilated band is `step` plain bands, one over each residue class of positions ("chain").
// *Chunks*: neighbouring chunks of an order of the tokens, or of several ("rounds"); see cpu/windows.h, which says it
// for the CPU.
#pragma once
#include "common/dropout.h"
#include "cuda/words.cuh"

namespace longspan::cuda {

enum class Role { queries, keys };  // what the rows of a tile are

constexpr int kNobody = -1, kZeros = -2;
constexpr int kMostHeads = 64;  // of one launch: their bands travel with the kernel's arguments

struct Bands {
  int left[kMostHeads], right[kMostHeads], step[kMostHeads];
};

// Spans that the GPU alone knows: all heads are plain bands, as far as each reaches.
struct Reaches {
  const int* far;  // [B, H]: how many keys a head looks at; null: bands are given
  bool both_ways;  // a query sees itself and keys on both sides; else those before it
  bool zeros;      // places before the first key hold keys of zero
  int most;        // no head looks at more
};

struct Chunks {
  int R, round;  // rounds, and the one whose rows are walked
  int chunk;     // slots of a chunk; the last of a round may be short
  int before, after;
  bool wrap, same_bucket, deduplicate;
  int reach;           // at most so many slots back; kNobody: no limit
  const int* order;    // [B, H, R, T]: the token at each slot; null: slot = token
  const int* first;    // [B, H, R, T]: the slot at which the bucket of each slot begins
  const int* slot_of;  // [B, H, R, T]: the slot of each token; to deduplicate
};

// Who stands somewhere in a tile.
struct Place {
  int token;  // kNobody: nobody, or hidden by the key mask; kZeros: a key before the first, of zeros
  int place;  // in its chain, or its slot
  int tag;    // two of different tags do not meet; kNobody: nobody is met
};

// Which keys a query sees, in a form without cases.
struct Sight {
  int tag;         // keys of this tag,
  int from, to;    // at these places,
  int last, not_;  // up to this token, and not this one
  __device__ __forceinline__ bool sees(const Place& key) const {
    return key.tag == tag && key.place >= from && key.place <= to && key.token <= last && key.token != not_;
  }
};

// A tile of rows, and its columns [begin, end), which count through all places where some of them may stand.
struct Work {
  int batch, head;
  int share;  // bands: which of the shares that columns are cut into
  int rows;
  int begin, end;
  int own;                 // chunks: through all rounds
  int slot;                // chunks: of the first row, in its round
  int token, step, place;  // bands: row i is token + i step, at place + i
  int other_token, shift;  // bands: the column at place x is other_token + (x - shift) step
  int before, after;       // bands: a query at place x sees keys from x - before to x + after
};

struct Pattern {
  int B, H, T, S;                // H: heads of the whole operator
  int first_head, heads;         // those of this launch
  int rows_per_tile, tiles;      // tiles of a head, of the head that has most
  int shares;                    // bands: into so many a tile's columns are cut, each for a block of its own
  bool chunked, causal, shared;  // shared: queries are the keys, and do not see themselves
  Bands bands;
  Reaches reaches;
  Chunks chunks;
  const bool* key_mask;  // [B, S] or null

  // Where [B, H, T] holds a token.
  __device__ __forceinline__ int64_t at(const Work& work, int token) const {
    return (int64_t(work.batch) * H + work.head) * T + token;
  }

  // The tile of a block of threads; false: there is none.
  template <Role role>
  __device__ __forceinline__ bool start(Work& work, int64_t block) const {
    const int tile = int(block % tiles);
    work.head = first_head + int(block / tiles % heads);
    work.batch = int(block / tiles / heads % B), work.share = int(block / tiles / heads / B);
    return chunked ? start_chunk<role>(work, tile) : start_band<role>(work, tile);
  }

  // Where results of `work` go: those of each share behind those of the one before, as if the batch were so much
  // longer.
  __device__ __forceinline__ Work results_of(Work work) const {
    work.batch += work.share * B;
    return work;
  }

  // Columns are walked in tiles of a whole number of columns: whether all pairs of this one see each other.
  template <Role role>
  __device__ __forceinline__ bool all_visible(const Work& work, int begin, int end) const {
    if (chunked || key_mask || end > work.end) return false;
    const int before = role == Role::queries ? work.before : work.after;
    const int after = role == Role::queries ? work.after : work.before;
    return begin >= work.place + work.rows - 1 - before && end - 1 <= work.place + after;
  }

  template <Role role>
  __device__ __forceinline__ Place row(const Work& work, int i) const {
    if (i >= work.rows) return nobody();
    if (chunked) return at_slot<role == Role::keys>(work, chunks.round, work.slot + i);
    return hidden_or<role == Role::keys>(work, {work.token + i * work.step, work.place + i, 0});
  }

  // The token of a row that exists, whether it is hidden or not.
  __device__ __forceinline__ int row_token(const Work& work, int i) const {
    if (!chunked) return work.token + i * work.step;
    return chunks.order ? chunks.order[at_slot_of(work, chunks.round, work.slot + i)] : work.slot + i;
  }

  template <Role role>
  __device__ __forceinline__ Place column(const Work& work, int column) const {
    constexpr bool is_key = role == Role::queries;
    if (column >= work.end) return nobody();
    if (!chunked && column < work.shift) return is_key && reaches.zeros ? Place{kZeros, column, 0} : nobody();
    if (!chunked) return hidden_or<is_key>(work, {work.other_token + (column - work.shift) * work.step, column, 0});
    const int other = neighbour(
        work.own,
        role == Role::queries ? column / chunks.chunk - chunks.before : chunks.before - column / chunks.chunk);
    const int slot = other < 0 ? T : other % num_chunks() * chunks.chunk + column % chunks.chunk;
    return slot < T ? at_slot<is_key>(work, other / num_chunks(), slot) : nobody();
  }

  __device__ __forceinline__ Sight sight(const Work& work, const Place& query) const {
    constexpr int most = 0x7fffffff;
    if (query.token < 0) return {kNobody - 1, 0, 0, 0, 0};
    if (!chunked) return {query.tag, query.place - work.before, query.place + work.after, most, kNobody};
    return {
        query.tag, chunks.reach >= 0 ? query.place - chunks.reach : -most, most, causal ? query.token : most,
        shared ? query.token : kNobody};
  }

  // How often a query finds a key, over all rounds and neighbours.
  __device__ __forceinline__ int copies(const Work& work, int query, int key) const {
    int count = 0;
    for (int r = 0; r < chunks.R; ++r) {
      const int own = r * num_chunks() + slot_of(work, r, query) / chunks.chunk;
      for (int offset = -chunks.before; offset <= chunks.after; ++offset) {
        const int other = neighbour(own, offset);
        if (other < 0) continue;
        const int round = other / num_chunks(), slot = slot_of(work, round, key);
        if (slot / chunks.chunk != other % num_chunks()) continue;
        count += !chunks.same_bucket || tag(work, round, slot) == tag(work, r, slot_of(work, r, query));
      }
    }
    return count > 0 ? count : 1;
  }

  __host__ __device__ __forceinline__ int num_chunks() const { return (T + chunks.chunk - 1) / chunks.chunk; }

 private:
  __device__ __forceinline__ Place nobody() const { return {kNobody, 0, kNobody}; }

  template <bool is_key>
  __device__ __forceinline__ Place hidden_or(const Work& work, Place place) const {
    if (is_key && key_mask && !key_mask[int64_t(work.batch) * S + place.token]) return nobody();
    return place;
  }

  // -------------------------------------------------------------------------------------------------------- bands

  static __device__ __forceinline__ int length_of(int first, int step, int total) {
    return first < total ? (total - 1 - first) / step + 1 : 0;
  }

  template <Role role>
  __device__ __forceinline__ bool start_band(Work& work, int tile) const {
    const int own = work.head - first_head, cached = S - T;
    int step = 1;
    if (reaches.far) {
      const int far = reaches.far[work.batch * H + work.head];
      work.before = reaches.both_ways ? far - 1 : far, work.after = reaches.both_ways ? far - 1 : -1;
    } else {
      step = min(bands.step[own], max(1, S)), work.before = bands.left[own], work.after = bands.right[own];
    }
    const int rows = role == Role::queries ? T : S;
    const int tiles_per_chain = ((rows + step - 1) / step + rows_per_tile - 1) / rows_per_tile;
    const int residue = tile / tiles_per_chain, begin = tile % tiles_per_chain * rows_per_tile;
    if (residue >= step) return false;
    // Keys of the chain are residue + place * step; its first query stands at place `shift`.
    const int first_query = ((residue - cached) % step + step) % step, shift = (first_query + cached) / step;
    const int queries = length_of(first_query, step, T), keys = length_of(residue, step, S);
    work.rows = min(rows_per_tile, (role == Role::queries ? queries : keys) - begin);
    if (work.rows <= 0) return false;
    work.step = step;
    if (role == Role::queries) {
      work.token = first_query + begin * step, work.place = begin + shift;
      work.other_token = residue, work.shift = 0;
      work.begin = reaches.zeros ? work.place - work.before : max(0, work.place - work.before);
      work.end = min(keys, work.place + work.rows + work.after);
    } else {
      work.token = residue + begin * step, work.place = begin;
      work.other_token = first_query, work.shift = shift;
      work.begin = max(shift, work.place - work.after);
      work.end = min(shift + queries, work.place + work.rows + work.before);
    }
    if (shares > 1) take_share(work);
    return true;
  }

  // Shares are of whole tiles, whichever kernel's.
  __device__ __forceinline__ void take_share(Work& work) const {
    constexpr int whole = 64;
    const int length = ((work.end - work.begin + shares - 1) / shares + whole - 1) / whole * whole;
    work.begin += work.share * length, work.end = min(work.end, work.begin + length);
  }

  // ------------------------------------------------------------------------------------------------------- chunks

  template <Role role>
  __device__ __forceinline__ bool start_chunk(Work& work, int tile) const {
    const int tiles_per_chunk = (chunks.chunk + rows_per_tile - 1) / rows_per_tile;
    const int place = tile / tiles_per_chunk, begin = tile % tiles_per_chunk * rows_per_tile;
    if (place >= num_chunks()) return false;
    work.own = chunks.round * num_chunks() + place;
    work.slot = place * chunks.chunk + begin;
    work.rows = min(min(rows_per_tile, chunks.chunk - begin), T - work.slot);
    if (work.rows <= 0) return false;
    work.begin = 0, work.end = (chunks.before + 1 + chunks.after) * chunks.chunk;
    if (!chunks.wrap) {  // leave out neighbours that do not exist; columns of keys' tiles run from late to early ones
      const int earlier = role == Role::queries ? place : num_chunks() - 1 - place;
      work.begin = max(0, chunks.before - earlier) * chunks.chunk;
      work.end = min(chunks.before + 1 + chunks.after, chunks.before + num_chunks() - earlier) * chunks.chunk;
    }
    return true;
  }

  // The chunk `offset` chunks from `own`, both counted through all rounds. It is its own inverse with -offset.
  __device__ __forceinline__ int neighbour(int own, int offset) const {
    const int per_round = num_chunks(), total = chunks.R * per_round, other = own + offset;
    if (chunks.wrap) {
      if (offset > total || -offset > total) return own;  // as in the original
      return (other % total + total) % total;
    }
    return other >= 0 && other < total && other / per_round == own / per_round ? other : kNobody;
  }

  __device__ __forceinline__ int64_t at_slot_of(const Work& work, int round, int place) const {
    return ((int64_t(work.batch) * H + work.head) * chunks.R + round) * T + place;
  }
  __device__ __forceinline__ int slot_of(const Work& work, int round, int token) const {
    return chunks.slot_of[at_slot_of(work, round, token)];
  }
  __device__ __forceinline__ int tag(const Work& work, int round, int slot) const {
    return chunks.same_bucket ? round * T + chunks.first[at_slot_of(work, round, slot)] : 0;
  }

  template <bool is_key>
  __device__ __forceinline__ Place at_slot(const Work& work, int round, int slot) const {
    const int token = chunks.order ? chunks.order[at_slot_of(work, round, slot)] : slot;
    return hidden_or<is_key>(work, {token, slot, tag(work, round, slot)});
  }
};

}  // namespace longspan::cuda
