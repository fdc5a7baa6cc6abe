// SPDX-License-Identifier: Apache-2.0
// One row of one tensor, and its largest logits in exact order: found by what
// the scans left behind, so that only tiles that can hold one are read again.
// Internal linkage, as all of the CPU op's steps: one unit includes it.
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>
#include <vector>

#include "cpu_scan.h"
#include "ops.h"
#include "scalar.h"

namespace alignbeam {
namespace {

int64_t item_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

int64_t blocks_of(int64_t columns) { return (columns + kBlock - 1) / kBlock; }

// One row of one tensor.
struct Row {
  const char* data;
  int64_t columns;
  DType dtype;
  const ScanKernels* scan;

  Row(const RowView& view, int64_t row)
      : data(static_cast<const char*>(view.data) + row * view.row_stride * item_size(view.dtype)),
        columns(view.num_cols),
        dtype(view.dtype),
        scan(&best_kernels(view.dtype)) {}

  const void* at(int64_t column) const { return data + column * item_size(dtype); }

  float logit(int64_t column) const {
    const void* p = at(column);
    if (dtype == DType::kFloat32) {
      float x;
      std::memcpy(&x, p, sizeof x);
      return x;
    }
    uint16_t half;
    std::memcpy(&half, p, sizeof half);
    return dtype == DType::kBFloat16 ? bfloat16_to_float(half) : half_to_float(half);
  }

  // Asks for a tile's memory.
  void prefetch(int64_t begin) const {
    const auto* from = static_cast<const char*>(at(begin));
    for (int64_t b = 0; b < kTile * item_size(dtype); b += 64) __builtin_prefetch(from + b);
  }

  void scan_block(int64_t block, bool with_maxima, BlockScan* out) const {
    const int64_t begin = block * kBlock;
    const int64_t count = std::min(kBlock, columns - begin);
    (with_maxima ? scan->scan_block : scan->sum_block)(at(begin), count, out);
  }
};

// What a selection works in, kept from row to row.
struct SelectScratch {
  std::vector<int16_t> delegates;
  std::vector<int64_t> tiles;  // that hold a candidate, by first column
};

// The `wanted`-th largest of maxima of disjoint groups, cut to a short key: at
// least that many logits reach it.
int32_t safe_threshold(const BlockScan* scans, int64_t blocks, int wanted, SelectScratch& scratch) {
  auto& keys = scratch.delegates;
  keys.resize(static_cast<size_t>(blocks) * kDelegates);
  for (int64_t b = 0; b < blocks; ++b) {
    std::copy_n(scans[b].delegates, kDelegates, keys.begin() + b * kDelegates);
  }
  uint16_t threshold = 0;  // biased by 2^15, so that bits can be set from the top
  for (uint16_t bit = 1u << 15; bit != 0; bit >>= 1) {
    const auto candidate = static_cast<int16_t>((threshold | bit) ^ 0x8000u);
    int reached = 0;
    // Counted in 16 bits, as many lanes at a time as the keys themselves fill.
    for (int64_t b = 0; b < blocks; ++b) {
      const int16_t* block = keys.data() + b * kDelegates;
      int16_t in_block = 0;
      for (int i = 0; i < kDelegates; ++i) in_block += block[i] >= candidate;
      reached += in_block;
    }
    if (reached >= wanted) threshold |= bit;
  }
  return least_key(static_cast<int16_t>(threshold ^ 0x8000u));
}

// The `wanted` largest logits as rank keys, descending; all of them where the
// row is shorter.
void select_top(const Row& row, const BlockScan* scans, int wanted, SelectScratch& scratch,
                std::vector<uint64_t>& ranks) {
  // Candidates held before the best are sifted out.
  constexpr size_t kCapacity = 4096;
  static_assert(kCapacity >= kMaxTopB + kMaxTopK + kTile);
  int32_t threshold = safe_threshold(scans, blocks_of(row.columns), wanted, scratch);
  // Of a tile's largest logit the upper half is known.
  const auto may_reach = [&](int64_t begin) {
    return scans[begin / kBlock].tile_max[begin % kBlock / kTile] >= threshold >> 16;
  };
  auto& tiles = scratch.tiles;
  tiles.clear();
  for (int64_t begin = 0; begin < row.columns; begin += kTile) {
    if (may_reach(begin)) tiles.push_back(begin);
  }
  uint32_t columns[kTile];
  ranks.clear();
  const auto sift = [&] {
    std::nth_element(ranks.begin(), ranks.begin() + (wanted - 1), ranks.end(), std::greater<>());
    ranks.resize(wanted);
  };
  // Where rows are many, a tile has left the caches since it was scanned.
  constexpr size_t kAhead = 4;
  for (size_t i = 0; i < std::min(kAhead, tiles.size()); ++i) row.prefetch(tiles[i]);
  for (size_t i = 0; i < tiles.size(); ++i) {
    if (i + kAhead < tiles.size()) row.prefetch(tiles[i + kAhead]);
    const int64_t begin = tiles[i];
    if (ranks.size() + kTile > kCapacity) {
      sift();
      // Columns come in ascending order: from here on, a tie loses to those
      // already held.
      threshold = order_key(rank_logit(ranks[wanted - 1])) + 1;
    }
    if (!may_reach(begin)) continue;
    const int64_t count = std::min(kTile, row.columns - begin);
    const int found = row.scan->collect(row.at(begin), count, threshold, columns);
    for (int j = 0; j < found; ++j) {
      const int64_t column = begin + columns[j];
      ranks.push_back(rank_key(order_key(row.logit(column)), static_cast<uint32_t>(column)));
    }
  }
  if (ranks.size() > static_cast<size_t>(wanted)) sift();
  std::sort(ranks.begin(), ranks.end(), std::greater<>());
}

}  // namespace
}  // namespace alignbeam
