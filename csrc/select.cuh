// SPDX-License-Identifier: Apache-2.0
// The `wanted` largest logits of a row that has been read, by one block, in three steps:
//   bound       a value that at least `wanted` group maxima reach, from the maxima alone;
//   candidates  all elements that reach it, from the few groups that have one;
//   rank        each candidate counts those before it.
// Too many candidates (ties, sorted rows): select_exactly.cuh.
#pragma once

#include "row.cuh"

namespace alignbeam {
namespace {

constexpr int kMaxWanted = kMaxTopB + kMaxTopK;
constexpr int kMaxSlots = kMaxWanted + kMaxTopB;
constexpr int kMaxCandidates = kOctet * kMaxWanted;
constexpr int kRankAtOnce = 256;  // so many more than wanted are ranked as they are
constexpr int kMaxListed = 768;
constexpr int kMaxPieces = 1024;  // of a row: 524,288 columns
constexpr int kSeenWords = 1024;
constexpr int kBoundWarps = 4;  // find the bound and list the groups

// What a block shares while it finishes a row.
struct Shared {
  uint64_t candidates[kMaxCandidates];  // rank keys; select_exactly's histogram
  double log_a[kMaxTopB];               // of a slot's share of the anchor
  union {
    double log_f[kMaxSlots];  // mixed
    // Before: the slots' ids modulo 32 * kSeenWords, a bit each.
    alignas(16) uint32_t seen[kSeenWords];
  };
  double order[kMaxSlots];                // by which the slots are ranked
  LogSum totals[2];                       // the anchor's, the target's
  PublishedRow rows[2];                   // likewise
  int32_t ids[kMaxSlots];                 // target ids; -1 where the slot holds no choice
  int32_t to[kMaxTopB];                   // the selected columns' translations
  float logit[kMaxSlots];                 // the target's
  int32_t column[kMaxWanted];             // selected, best first
  float selected[kMaxWanted];             // their logits
  int32_t listed[kMaxListed];             // groups that reach the bound
  alignas(16) int maxima[2][kMaxPieces];  // the anchor's, the target's
  int tally[2][kWarps];
  int listed_count;
  int candidate_count;
  int bound;  // a short key
  int top;    // the largest short key
  int digit;
  int above;
  int level;
  int least;
  int most;
  int outside;  // the table points outside the target's vocabulary
  int shared;   // two slots may have one id
  int wanted;   // of the target's own best, for the slots below
  int slots;
  int32_t flags;
  double log_sum;
};

// The greatest short key found that at least `wanted` of the warp's sets reach; each of the
// 16-bit halves of `words` is a set's maximum. Sets of any shape do: `wanted` maxima are
// `wanted` elements. A few more than `wanted` are good enough, and end the search early.
template <int kWords>
__device__ __forceinline__ int find_bound(const int (&words)[kWords], int wanted, int& top) {
  int first = INT32_MIN, second = INT32_MIN, least = INT32_MAX;
  const auto low_half = [](int word) {
    return static_cast<int>(static_cast<uint32_t>(word) << 16);
  };
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int key = h ? words[i] : low_half(words[i]);
      least = key < least ? key : least;
      const int smaller = key < first ? key : first;
      second = smaller > second ? smaller : second;
      first = key > first ? key : first;
    }
  }
  top = warp_max(first) >> 16;
  int too_few = top + 1;
  // Beyond the largest of the second ones are the lanes' first ones, 32 at most.
  if (wanted > 32) too_few = (warp_max(second) >> 16) + 1;
  int enough = warp_min(wanted <= 32 ? first : wanted <= 64 ? second : least) >> 16;
  // Three bars at a time, whose counts of ten bits each are one sum: 64 * kWords sets at most.
  static_assert(64 * kWords < 1024);
#pragma unroll 1
  while (too_few - enough > 1) {
    const int quarter = (too_few - enough + 3) >> 2;
    int bars[3];
#pragma unroll
    for (int b = 0; b < 3; ++b) {
      const int bar = enough + (b + 1) * quarter;
      bars[b] = bar < too_few ? bar : too_few - 1;
    }
    int counts = 0;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const int low = low_half(words[i]);
#pragma unroll
      for (int b = 0; b < 3; ++b) {
        const int least_of_it = bars[b] * 65536;
        counts += ((words[i] >= least_of_it) + (low >= least_of_it)) << (10 * b);
      }
    }
    counts = warp_sum(counts);
    int reached = 0;
#pragma unroll
    for (int b = 0; b < 3; ++b) {
      const int count = counts >> (10 * b) & 1023;
      if (count >= wanted) {  // those before it, too
        enough = bars[b];
        reached = count;
      } else if (bars[b] < too_few) {
        too_few = bars[b];
      }
    }
    if (reached != 0 && reached <= wanted + wanted / 8) break;
  }
  return enough > kShortMinusInf ? enough : kShortMinusInf;
}

// Takes a row's maxima, of which none is left for the next launch; waits for those that are still
// to come. By `kTakers` warps from the `first` on.
template <int kTakers>
__device__ __forceinline__ void take_maxima(int side, int first, Shared& s) {
  const PublishedRow& row = s.rows[side];
#pragma unroll 1
  for (int chunk = thread_index() - 32 * first; chunk < row.chunks; chunk += 32 * kTakers) {
    uint32_t* const from = row.published.maxima + chunk * kPiecesPerChunk;
    Int4 four;
    do {
      four = read_four(from);
    } while (four.x == 0 || four.y == 0 || four.z == 0 || four.w == 0);
    store_zeros(from);
    *reinterpret_cast<Int4*>(s.maxima[side] + chunk * kPiecesPerChunk) = {
        Published::unpack_maxima(four.x), Published::unpack_maxima(four.y),
        Published::unpack_maxima(four.z), Published::unpack_maxima(four.w)};
  }
}

// The bound, by one warp. A word of `kWords` folds every so many of the row's words together.
template <int kWords>
__device__ __forceinline__ int bound_of(int side, int wanted, const Shared& s, int& top) {
  const int chunks = s.rows[side].chunks;
  int words[kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = Published::kNoMaxima;
#pragma unroll 1
  for (int begin = thread_index() % 32; begin < chunks; begin += 96) {
    Int4 four[3];
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const int chunk = begin + i * 32;
      four[i] = {Published::kNoMaxima, Published::kNoMaxima, Published::kNoMaxima,
                 Published::kNoMaxima};
      if (chunk < chunks) {
        four[i] = *reinterpret_cast<const Int4*>(s.maxima[side] + chunk * kPiecesPerChunk);
      }
    }
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      int* const fold = words + i * 4 % kWords;
      fold[0] = max_s16x2(fold[0], four[i].x);
      fold[1] = max_s16x2(fold[1], four[i].y);
      fold[2] = max_s16x2(fold[2], four[i].z);
      fold[3] = max_s16x2(fold[3], four[i].w);
    }
  }
  return find_bound(words, wanted, top);
}

// Bound and groups, by the first kBoundWarps warps, once the maxima are taken.
__device__ __forceinline__ void list_groups(int side, int wanted, Shared& s) {
  const int lane = thread_index() % 32;
  const int warp = thread_index() / 32;
  int top;
  const int bound =
      wanted <= 128 ? bound_of<4>(side, wanted, s, top) : bound_of<12>(side, wanted, s, top);
  if (thread_index() == 0) {
    s.bound = bound;
    s.top = top;
  }
  // Each of the warps lists the groups of some pieces.
  constexpr int kAtOnce = 3;
  const int pieces = s.rows[side].chunks * kPiecesPerChunk;
  const unsigned lower = (1u << lane) - 1;
#pragma unroll 1
  for (int begin = warp * 32; begin < pieces; begin += kAtOnce * kBoundWarps * 32) {
    unsigned lows[kAtOnce];
    unsigned highs[kAtOnce];
    int count = 0;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int piece = begin + i * kBoundWarps * 32 + lane;
      const int maxima = piece < pieces ? s.maxima[side][piece] : Published::kNoMaxima;
      lows[i] = warp_ballot(static_cast<int16_t>(maxima & 0xffff) >= bound);
      highs[i] = warp_ballot((maxima >> 16) >= bound);
      count += count_bits(lows[i]) + count_bits(highs[i]);
    }
    int place = 0;
    if (lane == 0) place = atomic_add(&s.listed_count, count);
    place = shuffle_from(place, 0);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int piece = begin + i * kBoundWarps * 32 + lane;
      int at = place + count_bits(lows[i] & lower) + count_bits(highs[i] & lower);
      const bool low = (lows[i] >> lane & 1) != 0;
      if (low && at < kMaxListed) s.listed[at] = 2 * piece;
      at += low;
      if ((highs[i] >> lane & 1) != 0 && at < kMaxListed) s.listed[at] = 2 * piece + 1;
      place += count_bits(lows[i]) + count_bits(highs[i]);
    }
  }
}

// The least logit with this short key.
__device__ __forceinline__ float least_logit(int bound) {
  return bound <= kShortMinusInf ? -INFINITY : key_to_float(bound * 65536);
}

// Many more groups than wanted: of many ties, which select_exactly.cuh picks sooner.
__device__ __forceinline__ bool gathered(int wanted, const Shared& s) {
  static_assert(2 * kMaxWanted + 128 <= kMaxListed);
  return s.listed_count <= 2 * wanted + 128;
}

// By all warps: every element of the listed groups that reaches the bound. `table`, if not null, is
// where those will be looked up next.
template <DType kType, bool kAligned>
__device__ __forceinline__ void gather_candidates(const Row& row, const int32_t* table, Shared& s) {
  constexpr int kBatch = !kAligned ? 1 : kType == DType::kFloat32 ? 4 : 8;
  static_assert(kAligned || kType == DType::kFloat32);
  const int lane = thread_index() % 32;
  const int warp = thread_index() / 32;
  const int groups = s.listed_count;
  const float least = least_logit(s.bound);
#pragma unroll 1
  for (int begin = warp; begin < groups; begin += kWarps * kBatch) {
    Octet<kType> x[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int at = begin + b * kWarps;
      // Beyond the row's end for a group that is not there: all NaN, which reach nothing.
      const int first = at < groups ? s.listed[at] * kGroupColumns : row.columns;
      x[b].template load_or_nan<kAligned>(row, first, lane);
    }
    uint64_t hits = 0;  // bit 8 b + i
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      unsigned octet = 0;
      if constexpr (kType == DType::kBFloat16) {
        const uint32_t bar = (static_cast<uint32_t>(float_bits(least)) >> 16) * 0x10001u;
        uint32_t both = 0;  // bits 0-3: even columns; 16-19: odd ones
#pragma unroll
        for (int i = 0; i < 4; ++i) both |= ge_bf16x2(x[b].raw[i], bar) & (0x10001u << i);
        octet = (both & 0xfu) | (both >> 12 & 0xf0u);
      } else {
#pragma unroll
        for (int i = 0; i < kOctet; ++i) octet |= x[b].at(i) >= least ? 1u << i : 0u;
      }
      hits |= static_cast<uint64_t>(octet) << (8 * b);
    }
    if (hits != 0) {
      int place = atomic_add(&s.candidate_count, count_bits64(hits));
#pragma unroll 1
      for (; hits != 0 && place < kMaxCandidates; hits &= hits - 1, ++place) {
        const int bit = first_bit64(hits);
        const int group = s.listed[begin + bit / 8 * kWarps];
        int i = bit % 8;
        if constexpr (kType == DType::kBFloat16) i = i % 4 * 2 + i / 4;
        const int column = group * kGroupColumns + Octet<kType>::column(lane, i);
        if (table != nullptr) prefetch_l1(table + column);
        s.candidates[place] = rank_key(order_key(row.logit(column)), static_cast<uint32_t>(column));
      }
    }
  }
}

// Leaves the best of the candidates: `wanted` or up to kRankAtOnce more. All threads; the block
// has just synchronised.
__device__ __forceinline__ void prune_candidates(int count, int wanted, Shared& s) {
  constexpr int kEach = (kMaxCandidates + kThreads - 1) / kThreads;
  const int thread = thread_index();
  uint64_t key[kEach];  // 0 for none: no logit's
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    key[i] = i * kThreads + thread < count ? s.candidates[i * kThreads + thread] : 0;
  }
  uint64_t enough = 0;
  uint64_t too_few = ~uint64_t{0};
  int turn = 0;
#pragma unroll 1
  while (too_few - enough > 1) {
    const uint64_t middle = enough + (too_few - enough) / 2;
    int reached = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) reached += key[i] >= middle;
    reached = warp_sum(reached);
    if (thread % 32 == 0) s.tally[turn][thread / 32] = reached;
    block_sync();
    reached = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) reached += s.tally[turn][w];
    turn ^= 1;
    if (reached < wanted) {
      too_few = middle;
    } else {
      enough = middle;
      if (reached <= wanted + kRankAtOnce / 4) break;
    }
  }
  if (thread == 0) s.candidate_count = 0;
  block_sync();
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (key[i] >= enough && key[i] != 0) s.candidates[atomic_add(&s.candidate_count, 1)] = key[i];
  }
  block_sync();
}

// Writes the `wanted` best of `count` candidates to s.column and s.selected, best first. Four
// threads to a candidate. With a table, each makes a slot: its id, looked up while the candidates
// are counted, its log-probability, the target's logit.
__device__ __forceinline__ void rank_candidates(int count, int wanted, const int32_t* table,
                                                Shared& s) {
  constexpr int kQuads = kThreads / 4;
  constexpr int kHalves = 2;  // candidates of a quad at a time
  const int sub = thread_index() % 4;
  const Row& target = s.rows[1];
#pragma unroll 1
  for (int begin = 0; begin < count; begin += kHalves * kQuads) {
    uint64_t key[kHalves];
    int id[kHalves];
    uint32_t bits[kHalves];  // of the target's logit
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {  // all look-ups before the first comparison
      const int i = begin + h * kQuads + thread_index() / 4;
      key[h] = i < count ? s.candidates[i] : 0;
      id[h] = -1;
      if (table != nullptr && i < count && sub == 0) {
        id[h] = load_once(table + rank_id(key[h]));
      }
    }
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      const bool inside = id[h] >= 0 && id[h] < target.columns;
      bits[h] = inside ? target.bits(id[h]) : 0;
    }
    int before[kHalves] = {};
#pragma unroll 4
    for (int j = sub; j < count; j += 4) {
      const uint64_t other = s.candidates[j];
#pragma unroll
      for (int h = 0; h < kHalves; ++h) before[h] += other > key[h];
    }
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      before[h] += shuffle_xor(before[h], 1);
      before[h] += shuffle_xor(before[h], 2);
      const int i = begin + h * kQuads + thread_index() / 4;
      if (i < count && sub == 0 && before[h] < wanted) {
        s.column[before[h]] = static_cast<int>(rank_id(key[h]));
        s.selected[before[h]] = rank_logit(key[h]);
        if (table != nullptr) {
          s.to[before[h]] = s.ids[before[h]] = id[h];
          s.logit[before[h]] = target.logit_of(bits[h]);
          s.log_a[before[h]] = log_prob(rank_logit(key[h]), s.totals[0]);
          if (id[h] < -1 || id[h] >= target.columns) {
            s.outside = 1;
          } else if (id[h] >= 0) {
            const uint32_t bit = 1u << (id[h] % 32);
            const uint32_t word = static_cast<uint32_t>(id[h]) / 32 % kSeenWords;
            if ((atomic_or(&s.seen[word], bit) & bit) != 0) s.shared = 1;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace alignbeam
