// SPDX-License-Identifier: Apache-2.0
// F(d) = (alpha a(d) + (1 - alpha) q(d)) / sum, or its log-mixed form, over the translated top_b:
// one launch. Compiles with nvcc behind cuda_ops.cuh, and with a host compiler behind
// cuda_on_host.h, which runs a block's threads as fibers: the CPU tests run these very lines.
//
// No more blocks are launched than fit on the GPU at once. The first ones read: all pieces of all
// rows in order, and publish what row.cuh says. The last ones finish: each takes a row at a time,
// waits for its words, and writes its output. What they wait for is read by blocks of lower index,
// which GPUs start first (CUB's scans rely on that as well) and which wait for nobody. Some rows at
// a time, all anchors are read before the targets, so that a finisher selects and translates while
// the targets are read, and little is left to do behind the last byte.
//
// Sums have a fixed shape, and what atomics order is sorted afterwards: the bits depend on the row
// alone.
#pragma once

#include "marks.cuh"
#include "row_mix.cuh"

namespace alignbeam {
namespace {

// n / by for n < 2^31, by one multiplication.
struct Divisor {
  uint32_t factor;
  uint32_t shift;
  __device__ __forceinline__ uint32_t divide(uint32_t n) const {
    return static_cast<uint32_t>((uint64_t{n} * factor) >> shift);
  }
};
inline Divisor divisor(uint32_t by) {
  uint32_t log = 0;
  while ((uint64_t{1} << log) < by) ++log;
  return {static_cast<uint32_t>(((uint64_t{1} << (31 + log)) + by - 1) / by), 31 + log};
}

// How one launch is laid out.
struct Plan {
  int anchor_chunks;
  int target_chunks;
  int readers;    // blocks
  int unit;       // pieces that a warp takes at a time: 1, 2 or 4, and so of one row
  int finishers;  // blocks; and rows whose anchors are read before their targets
  bool at_once;   // few rows: anchor and target come at the same time
  // What the readers' warps would have to keep in registers, or to divide by.
  uint32_t anchor_pieces;
  uint32_t target_pieces;
  uint32_t row_pieces;
  uint32_t pieces;  // all
  uint32_t step;    // pieces that the readers take at a time
  Divisor by_group;
  Divisor by_anchor;
  Divisor by_target;
  Published
      published;  // [R, anchor's and target's chunks * kPiecesPerChunk], zero between launches
};

// A row as its finisher sees it.
__device__ __forceinline__ PublishedRow row_of(const MixParams& params, const Plan& plan,
                                               int64_t row, bool anchor) {
  const int64_t place = row * plan.row_pieces + (anchor ? 0 : plan.anchor_pieces);
  return {make_row(anchor ? params.anchor : params.target, row),
          anchor ? plan.anchor_chunks : plan.target_chunks,
          {plan.published.sums + place, plan.published.maxima + place}};
}

// Brings the table's part for these pieces of a row into L2, where all finishers will look for it.
__device__ __forceinline__ void prefetch_table(const MixParams& params, int begin, int end) {
  const auto columns = static_cast<int>(params.anchor.num_cols);
  for (int i = begin * kPieceColumns + thread_index() % 32 * 32;
       i < end * kPieceColumns && i < columns; i += 32 * 32) {
    prefetch_l2(params.table + i);
  }
}

// One warp of the readers. Neighbouring warps take neighbouring units, so that rows are complete in
// their order.
__device__ __forceinline__ void read_units(const MixParams& params, const Plan& plan) {
  const auto rows = static_cast<uint32_t>(params.anchor.num_rows);
  const uint32_t finishers = plan.finishers;
#pragma unroll 1
  for (uint32_t at = (block_index() * kWarps + thread_index() / 32) * plan.unit; at < plan.pieces;
       at += plan.step) {
    const uint32_t first_row = rows > finishers ? plan.by_group.divide(at) * finishers : 0;
    const uint32_t in_group = at - first_row * plan.row_pieces;
    const uint32_t group = rows - first_row < finishers ? rows - first_row : finishers;
    const bool anchor = in_group < group * plan.anchor_pieces;
    const uint32_t of_side = anchor ? in_group : in_group - group * plan.anchor_pieces;
    const uint32_t in_side = (anchor ? plan.by_anchor : plan.by_target).divide(of_side);
    const uint32_t row = first_row + in_side;
    const auto piece =
        static_cast<int>(of_side - in_side * (anchor ? plan.anchor_pieces : plan.target_pieces));
    if (anchor && row == 0) prefetch_table(params, piece, piece + plan.unit);
    const uint32_t place = row * plan.row_pieces + (anchor ? 0 : plan.anchor_pieces) + piece;
    read_pieces(make_row(anchor ? params.anchor : params.target, row), piece, piece + plan.unit,
                plan.published, place);
  }
}

// The target's words, by the warps of these numbers.
constexpr int kSumsWarp = kBoundWarps + 1;
constexpr int kMaximaWarps = 2;
constexpr int kMaximaWarp = kWarps - kMaximaWarps;
__device__ __forceinline__ void take_target(int warp, Shared& s) {
  if (warp == kSumsWarp) {
    const LogSum total = log_sum_of(merge_pieces(s.rows[1]));
    if (thread_index() % 32 == 0) s.totals[1] = total;
  } else if (warp >= kMaximaWarp) {
    take_maxima<kMaximaWarps>(1, kMaximaWarp, s);
  }
}

// A finisher's row, all threads.
__device__ __forceinline__ void finish_row(const MixParams& params, const MixOutput& out,
                                           const Plan& plan, int64_t row, Shared& s) {
  const int warp = thread_index() / 32;
  int wanted = params.top_b;
  mark(row, kBegun);
  // Once over the anchor's row, and where the target's own best are asked for, over the target's.
#pragma unroll 1
  for (int side = 0; wanted > 0; side = 1) {
    if (side == 0) {
      if (warp < kBoundWarps) take_maxima<kBoundWarps>(0, 0, s);
      block_sync();
      mark(row, kMaximaTaken);
    }
    if (warp < kBoundWarps) {
      list_groups(side, wanted, s);
    } else if (side == 0) {
      if (warp == kBoundWarps) {
        const LogSum total = log_sum_of(merge_pieces(s.rows[0]));
        if (thread_index() % 32 == 0) s.totals[0] = total;
        for (int i = thread_index() % 32; i < kSeenWords / 4; i += 32) store_zeros(s.seen + 4 * i);
      } else if (plan.at_once) {
        take_target(warp, s);
      }
    }
    mark(row, kListed);
    const int32_t* const table = side == 0 ? params.table : nullptr;
    const int gathered = gather_listed(side, wanted, table, s);
    mark(row, kGathered);
    rank_candidates(gathered, wanted, table, s);
    block_sync();
    const int found = gathered < wanted ? gathered : wanted;
    mark(row, kRanked);
    if (side == 0) {
      if (s.shared) share_out(found, s);
      if (!plan.at_once) {
        take_target(warp, s);
        block_sync();
      }
    }
    mark(row, kTargetTaken);
    RowMix mix(params, out, row, s);
    if (warp == 1 && side == 0) {
      const Translated t = add_masses(found, s);
      if (t.slots >= 0 && mix.exists()) mix.write_masses(t);
    }
    if (warp == 0) {
      wanted = 0;
      if (side == 1) {
        mix.add_target_best(found);
        mix.choose();
      } else if (!mix.mix_quickly(is_distribution(s.totals[0]) && s.outside == 0 ? found : -1)) {
        wanted = mix.mix(add_masses(found, s));
        if (wanted == 0) mix.choose();
      }
      if (thread_index() == 0) {
        s.wanted = wanted;
        s.listed_count = s.candidate_count = 0;
      }
    }
    mark(row, kMixed);
    block_sync();
    wanted = s.wanted;
  }
}

// What a block does.
__device__ __forceinline__ void mix_topk_block(const MixParams& params, const MixOutput& out,
                                               const Plan& plan, Shared& s) {
  const auto block = static_cast<int>(block_index());
  if (block < plan.readers) {
    mark_block(false);
    read_units(params, plan);
    mark_block(true);
    return;
  }
  const int finisher = block - plan.readers;
#pragma unroll 1
  for (int64_t row = finisher; row < params.anchor.num_rows; row += plan.finishers) {
    if (thread_index() == 0) {
      s.rows[0] = row_of(params, plan, row, true);
      s.rows[1] = row_of(params, plan, row, false);
      s.listed_count = s.candidate_count = s.outside = s.shared = 0;
    }
    block_sync();
    finish_row(params, out, plan, row, s);
  }
}

// Lays out a launch for a GPU that holds so many blocks at once on so many processors. The pieces,
// and with them every bit, stay the same whatever it says.
inline void lay_out(Plan& plan, int64_t rows, int resident, int processors, int unit) {
  plan.anchor_pieces = plan.anchor_chunks * kPiecesPerChunk;
  plan.target_pieces = plan.target_chunks * kPiecesPerChunk;
  plan.row_pieces = plan.anchor_pieces + plan.target_pieces;
  plan.pieces = static_cast<uint32_t>(rows * plan.row_pieces);
  const int64_t groups = (rows + processors - 1) / processors;
  plan.finishers = static_cast<int>((rows + groups - 1) / groups);
  plan.unit = unit;
  const int64_t useful = (plan.pieces / unit + kWarps - 1) / kWarps;
  // Where readers take turns, a processor that holds one more of them than the others ends last:
  // as many on each, beside a finisher.
  const int64_t most = resident - (plan.at_once ? plan.finishers : processors);
  const int64_t readers = useful < most ? useful : most;
  plan.readers = static_cast<int>(readers > 1 ? readers : 1);  // whom all others wait for
  plan.step = plan.readers * kWarps * unit;
  plan.by_group = divisor(plan.finishers * plan.row_pieces);
  plan.by_anchor = divisor(plan.anchor_pieces);
  plan.by_target = divisor(plan.target_pieces);
}

// nullptr where a block's shared memory holds the maxima of such rows.
inline const char* check_widths(const MixParams& params) {
  constexpr int64_t kMost = int64_t{kMaxPieces} * kPieceColumns;
  return params.anchor.num_cols > kMost || params.target.num_cols > kMost
             ? "mix_topk: the CUDA kernel takes at most 524,288 columns"
             : nullptr;
}

inline int chunks_of(int64_t columns) {
  return static_cast<int>((columns + kChunkColumns - 1) / kChunkColumns);
}

}  // namespace
}  // namespace alignbeam
