// SPDX-License-Identifier: Apache-2.0
// When a row's steps ended, for bench/phases.py, which defines ALIGNBEAM_MARKS. Elsewhere nothing
// of it is compiled.
#pragma once

#include <cstdint>

namespace alignbeam {
namespace {

enum Mark : int { kBegun, kMaximaTaken, kListed, kGathered, kRanked, kTargetTaken, kMixed, kMarks };

#if defined(ALIGNBEAM_MARKS)
constexpr int kMarkedRows = 512;
constexpr int kMarkedBlocks = 1024;
__device__ long long row_marks[kMarkedRows][kMarks];
__device__ long long block_marks[kMarkedBlocks][2];  // of a reader: begun, ended

__device__ __forceinline__ long long nanoseconds() {
  long long t;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
  return t;
}
__device__ __forceinline__ void mark(int64_t row, Mark what) {
  if (threadIdx.x == 0) row_marks[row][what] = nanoseconds();
}
// All threads of a reader.
__device__ __forceinline__ void mark_block(bool ended) {
  if (ended) __syncthreads();
  if (threadIdx.x == 0) block_marks[blockIdx.x][ended] = nanoseconds();
}
#else
__device__ __forceinline__ void mark(int64_t, Mark) {}
__device__ __forceinline__ void mark_block(bool) {}
#endif

}  // namespace
}  // namespace alignbeam
