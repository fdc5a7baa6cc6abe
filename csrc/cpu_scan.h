// SPDX-License-Identifier: Apache-2.0
// What each instruction set implements, and nothing more: reading logits.
// Selection, merging and the epilogue are shared. One table of functions per
// (instruction set, dtype).
#pragma once

#include <cstdint>

#include "ops.h"

namespace alignbeam {

// The fixed grid: a row is cut into blocks, the unit of work; a block into
// tiles, the unit of skipping. Both depend on nothing but the column number, so
// results do not depend on threads.
inline constexpr int64_t kBlock = 16384;
inline constexpr int64_t kTile = 256;
inline constexpr int kTilesPerBlock = kBlock / kTile;
inline constexpr int kDelegates = 32;

// One read of a block: its sum of exponentials (PartialSum in scalar.h), and
// maxima as short keys (short_key in scalar.h). A delegate is the maximum of
// some of the columns; no column has two, and every kernel may group them as it
// likes. kNoKey, or the key of -inf, where a tile or a delegate has no column.
inline constexpr int16_t kNoKey = INT16_MIN;
struct BlockScan {
  float shift;
  float sum;
  int16_t tile_max[kTilesPerBlock];
  int16_t delegates[kDelegates];
};

struct ScanKernels {
  // Fills all of `out`. count is in 1..kBlock.
  void (*scan_block)(const void* logits, int64_t count, BlockScan* out);
  // Fills shift and sum alone: the target row needs no selection.
  void (*sum_block)(const void* logits, int64_t count, BlockScan* out);
  // Writes the columns (0..count-1, count <= kTile) whose order key is >=
  // threshold, ascending; returns how many. `columns` has room for kTile.
  int (*collect)(const void* logits, int64_t count, int32_t threshold, uint32_t* columns);
};

// How a block is read where it is not in the caches: in one place, its memory
// asked for long before it is due, or in several at a time, each followed by a
// prefetcher of the core's own. Which is faster is the CPU's.
enum class Reading { kOnePlace, kManyPlaces };

const ScanKernels& scalar_kernels(DType dtype);
#if defined(ALIGNBEAM_X86)
const ScanKernels& avx2_kernels(DType dtype, Reading reading);
const ScanKernels& avx512_kernels(DType dtype, Reading reading);
#endif
// Of these, the best that the CPU has and the user allows (mix_topk_cpu.cpp).
const ScanKernels& best_kernels(DType dtype);

}  // namespace alignbeam
