// SPDX-License-Identifier: Apache-2.0
// Step 2 of select.cuh where the candidates are too many: an exact radix select over the maxima of
// the lanes' octets, among the groups alone that can matter. It leaves fewer than 8 * wanted
// elements beyond the last one and, of its ties, the lowest columns.
#pragma once

#include "select.cuh"

namespace alignbeam {
namespace {

template <DType kType, bool kAligned>
struct ExactSelect {
  static_assert(kAligned || kType == DType::kFloat32);
  static constexpr int kBatch = 2;
  static constexpr int kBins = kThreads;
  static constexpr int kCopies = 16;  // of each bin, for two lanes each: no long queues
  static_assert(kBins * kCopies * sizeof(int) <= sizeof Shared::candidates);
  static_assert(2 * kThreads <= kMaxListed);

  const int side;
  const PublishedRow& row;
  Shared& s;
  const int wanted;
  const int unit;  // a key's bits below follow from those above

  __device__ uint32_t level_of(int key) const {
    return (static_cast<uint32_t>(key) ^ 0x80000000u) >> unit;
  }
  // The least key of a level.
  __device__ int key_of(uint32_t level) const {
    return static_cast<int>((level << unit) ^ 0x80000000u);
  }
  __device__ int short_of(uint32_t level) const { return key_of(level) >> 16; }
  // The least logit of a level, and the greatest.
  __device__ float least_of(uint32_t level) const {
    const int key = key_of(level);
    return key <= kShortMinusInf * 65536 + 65535 ? -INFINITY : key_to_float(key);
  }
  __device__ float most_of(uint32_t level) const {
    return key_to_float(key_of(level) | ((1 << unit) - 1));
  }

  // Lists the groups that reach `least`, a short key, in the order of the columns, some at a time;
  // calls visit(count) with each list in s.listed until it gives false. All threads.
  template <class Visit>
  __device__ __forceinline__ void walk(int least, Visit&& visit) {
    const int lane = thread_index() % 32;
    const int warp = thread_index() / 32;
    const int pieces = row.chunks * kPiecesPerChunk;
#pragma unroll 1
    for (int begin = 0; begin < pieces; begin += kThreads) {
      const int piece = begin + thread_index();
      const int maxima = piece < pieces ? s.maxima[side][piece] : Published::kNoMaxima;
      const bool low = static_cast<int16_t>(maxima & 0xffff) >= least;
      const bool high = (maxima >> 16) >= least;
      const unsigned lows = warp_ballot(low);
      const unsigned highs = warp_ballot(high);
      const unsigned lower = (1u << lane) - 1;
      if (lane == 0) s.tally[1][warp] = count_bits(lows) + count_bits(highs);
      block_sync();
      int at = count_bits(lows & lower) + count_bits(highs & lower);
      int count = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        if (w < warp) at += s.tally[1][w];
        count += s.tally[1][w];
      }
      if (low) s.listed[at] = 2 * piece;
      if (high) s.listed[at + low] = 2 * piece + 1;
      block_sync();
      const bool more = visit(count);
      block_sync();
      if (!more) return;
    }
  }

  // The columns that the lane holds and whose logits are from `low` to `high`, a bit each.
  static __device__ __forceinline__ unsigned between(const Octet<kType>& x, float low, float high) {
    unsigned mask = 0;
#pragma unroll
    for (int i = 0; i < kOctet; ++i) mask |= x.at(i) >= low && x.at(i) <= high ? 1u << i : 0u;
    return mask;
  }
  // NaN, which is between nothing, beyond the row's end.
  __device__ __forceinline__ void load(Octet<kType>& x, int group) const {
    x.template load_or_nan<kAligned>(row, group * kGroupColumns, thread_index() % 32);
  }
  __device__ __forceinline__ int beyond() const { return row.chunks * kGroupsPerChunk; }
  __device__ __forceinline__ void put(int place, int group, int i) {
    const int column = group * kGroupColumns + Octet<kType>::column(thread_index() % 32, i);
    s.candidates[place] = rank_key(order_key(row.logit(column)), static_cast<uint32_t>(column));
  }

  // Calls visit(octet, its group's place in s.listed) for each octet of the groups that reach
  // `least`, in any order; several of a warp's loads are on their way at a time. Beyond the list
  // come octets of NaN, which reach nothing.
  template <class Visit>
  __device__ __forceinline__ void walk_octets(int least, Visit&& visit) {
    const int warp = thread_index() / 32;
    walk(least, [&](int count) {
#pragma unroll 1
      for (int begin = warp * kBatch; begin < count; begin += kWarps * kBatch) {
        Octet<kType> x[kBatch];
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          load(x[b], begin + b < count ? s.listed[begin + b] : beyond());
        }
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          visit(x[b], begin + b);
        }
      }
      return true;
    });
  }

  // One pass: narrows [low, high] to the bin with the last wanted octet. True where all from `low`
  // on fits.
  __device__ __forceinline__ bool narrow(uint32_t& low, uint32_t& high, int& above) {
    auto* const bins = reinterpret_cast<int*>(s.candidates);
    const int thread = thread_index_anew();
    const int lane = thread % 32;
    const int warp = thread / 32;
    const int shift = high_bit(high - low) > 7 ? high_bit(high - low) - 7 : 0;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) bins[i * kBins + thread] = 0;
    if (thread == 0) {
      s.least = INT32_MAX;
      s.most = 0;
      s.digit = -1;
    }
    // Of the levels found, as distances from `low`, cut at the greatest int.
    int least = INT32_MAX;
    int most = 0;
    const float least_logit = least_of(low);
    const float most_logit = most_of(high);
    walk_octets(short_of(low), [&](const Octet<kType>& x, int) {
      const float largest = x.largest();
      if (largest >= least_logit && largest <= most_logit) {
        const uint32_t distance = level_of(order_key(largest)) - low;
        atomic_count(&bins[static_cast<int>(distance >> shift) * kCopies + lane % kCopies]);
        const int cut = distance < INT32_MAX ? static_cast<int>(distance) : INT32_MAX;
        least = cut < least ? cut : least;
        most = cut > most ? cut : most;
      }
    });
    least = warp_min(least);
    most = warp_max(most);
    if (lane == 0) {
      atomic_min(&s.least, least);
      atomic_max(&s.most, most);
    }
    const int bin = kBins - 1 - thread;  // thread 0 has the highest
    int mine = 0;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) mine += bins[bin * kCopies + (i + thread) % kCopies];
    int before = mine;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = shuffle_up(before, step);
      if (lane >= step) before += other;
    }
    if (lane == 31) s.tally[0][warp] = before;
    block_sync();
    before += above - mine;
    for (int w = 0; w < warp; ++w) before += s.tally[0][w];
    if (before < wanted && before + mine >= wanted) {
      s.digit = bin;
      s.above = before;
      s.level = mine;
    }
    block_sync();
    if (s.digit < 0) return true;  // fewer than `wanted` octets
    const uint32_t base = low;
    low = base + (static_cast<uint32_t>(s.digit) << shift);
    const uint32_t last = low + ((1u << shift) - 1);
    high = last < high ? last : high;
    if (base + static_cast<uint32_t>(s.least) > low) low = base + static_cast<uint32_t>(s.least);
    if (s.most < INT32_MAX && base + static_cast<uint32_t>(s.most) < high) {
      high = base + static_cast<uint32_t>(s.most);
    }
    above = s.above;
    return (above + s.level) * kOctet <= kMaxCandidates;
  }

  // All elements from `level` on, in any order.
  __device__ __forceinline__ void collect_from(uint32_t level) {
    const float least = least_of(level);
    walk_octets(short_of(level), [&](const Octet<kType>& x, int entry) {
      unsigned hits = between(x, least, INFINITY);
      if (hits == 0) return;
      const int group = s.listed[entry];
      int place = atomic_add(&s.candidate_count, count_bits(hits));
#pragma unroll 1
      for (; hits != 0 && place < kMaxCandidates; hits &= hits - 1, ++place) {
        put(place, group, first_bit64(hits));
      }
    });
  }

  // Elements of one level, the lowest columns first, until there are `wanted` candidates.
  __device__ __forceinline__ void add_ties(uint32_t level) {
    constexpr int kRun = 4;  // neighbouring groups to a warp
    // The columns of a 32-bit group run over the lanes twice.
    constexpr int kTurns = kType == DType::kFloat32 ? 2 : 1;
    const int lane = thread_index() % 32;
    const int warp = thread_index() / 32;
    int rank = s.candidate_count;  // of the next tie
    const float least = least_of(level);
    const float most = most_of(level);
    walk(short_of(level), [&](int count) {
#pragma unroll 1
      for (int begin = 0; begin < count && rank < wanted; begin += kWarps * kRun) {
        unsigned ties = 0;  // the lane's, kOctet bits a group
#pragma unroll
        for (int r = 0; r < kRun; ++r) {
          const int at = begin + warp * kRun + r;
          Octet<kType> x;
          load(x, at < count ? s.listed[at] : beyond());
          ties |= between(x, least, most) << (kOctet * r);
        }
        const int mine = warp_sum(count_bits(ties));
        if (lane == 0) s.tally[0][warp] = mine;
        block_sync();
        int place = rank;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) {
          if (w < warp) place += s.tally[0][w];
          rank += s.tally[0][w];
        }
#pragma unroll 1
        for (int turn = 0; turn < kRun * kTurns; ++turn) {
          constexpr int kBits = kOctet / kTurns;
          unsigned hits = ties >> (kBits * turn) & ((1u << kBits) - 1);
          const int here = count_bits(hits);
          int before = here;
#pragma unroll
          for (int step = 1; step < 32; step *= 2) {
            const int other = shuffle_up(before, step);
            if (lane >= step) before += other;
          }
          int next = place + before - here;
          place += shuffle_from(before, 31);
          const int group = s.listed[begin + warp * kRun + turn / kTurns];
#pragma unroll 1
          for (; hits != 0 && next < wanted; hits &= hits - 1, ++next) {
            put(next, group, turn % kTurns * kBits + first_bit64(hits));
          }
        }
        block_sync();
      }
      return rank < wanted;
    });
    if (thread_index() == 0) s.candidate_count = rank < wanted ? rank : wanted;
  }

  __device__ __forceinline__ void run() {
    uint32_t low = level_of(s.bound * 65536);
    uint32_t high = level_of(s.top * 65536 + 65535);
    int above = 0;       // octets beyond `high`, of which there is none yet: it is the greatest
    bool whole = false;  // all from `low` on fits
    block_sync();        // the caller has looked at the counts
#pragma unroll 1
    while (low < high && !whole) {
      whole = narrow(low, high, above);
      block_sync();  // all have read what the next pass writes anew
    }
    if (thread_index() == 0) s.candidate_count = 0;
    block_sync();
    if (whole) {
      collect_from(low);
    } else if (above > 0) {
      collect_from(low + 1);
    }
    if (!whole && s.candidate_count < wanted) add_ties(low);
  }
};

// Makes the candidates few enough to be ranked. Not inlined: what it needs must not cost the others
// registers.
__device__ __forceinline__ void narrow_candidates(int side, int wanted, Shared& s) {
  assume_shared(&s);
  if (!gathered(wanted, s) || s.candidate_count > kMaxCandidates) {
    const PublishedRow& row = s.rows[side];
    if (!row.aligned) {
      const int unit = row.dtype == DType::kBFloat16 ? 16 : row.dtype == DType::kFloat16 ? 13 : 0;
      ExactSelect<DType::kFloat32, false>{side, row, s, wanted, unit}.run();
    } else if (row.dtype == DType::kBFloat16) {
      ExactSelect<DType::kBFloat16, true>{side, row, s, wanted, 16}.run();
    } else if (row.dtype == DType::kFloat32) {
      ExactSelect<DType::kFloat32, true>{side, row, s, wanted, 0}.run();
    } else {
      ExactSelect<DType::kFloat16, true>{side, row, s, wanted, 13}.run();
    }
    block_sync();
    if (thread_index() == 0 && s.candidate_count > kMaxCandidates) {
      s.candidate_count = kMaxCandidates;  // of a row with NaN, which is refused
    }
    block_sync();
  }
  if (s.candidate_count > wanted + kRankAtOnce) prune_candidates(s.candidate_count, wanted, s);
}

}  // namespace
}  // namespace alignbeam
