// SPDX-License-Identifier: Apache-2.0
// F(d) = (alpha a(d) + (1 - alpha) q(d)) / sum, or its log-mixed form, over the
// translated top_b. One block of 16,384 columns of one row at a time is a work
// item; whoever finishes a row's last block selects, mixes and writes that row.
// Reads every logit once, plus the tiles of the anchor that can hold its top_b,
// plus one target logit for each translated id. Partial results are merged in
// column order, never in arrival order.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "cpu_finish.h"
#include "cpu_scan.h"
#include "cpu_select.h"
#include "ops.h"
#include "thread_pool.h"

namespace alignbeam {
namespace {

enum class Isa { kScalar, kAvx2, kAvx512 };

Isa choose_isa() {
  Isa best = Isa::kScalar;
#if defined(ALIGNBEAM_X86)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    best = Isa::kAvx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      best = Isa::kAvx512;
    }
  }
#endif
  // The override lowers the choice only: a CPU cannot be talked into
  // instructions it lacks.
  const char* wanted = std::getenv("ALIGNBEAM_CPU_ISA");
  if (wanted == nullptr) return best;
  if (std::strcmp(wanted, "scalar") == 0) return Isa::kScalar;
  if (std::strcmp(wanted, "avx2") == 0) return std::min(best, Isa::kAvx2);
  return best;
}

Isa isa() {
  static const Isa chosen = choose_isa();
  return chosen;
}

// Measured on one CPU of each maker (docs/speed.md).
Reading choose_reading() {
  const char* wanted = std::getenv("ALIGNBEAM_CPU_READS");
  if (wanted != nullptr && std::strcmp(wanted, "one") == 0) return Reading::kOnePlace;
  if (wanted != nullptr && std::strcmp(wanted, "many") == 0) return Reading::kManyPlaces;
#if defined(ALIGNBEAM_X86)
  if (__builtin_cpu_is("amd")) return Reading::kOnePlace;
#endif
  return Reading::kManyPlaces;
}

Reading reading() {
  static const Reading chosen = choose_reading();
  return chosen;
}

}  // namespace

const ScanKernels& best_kernels(DType dtype) {
#if defined(ALIGNBEAM_X86)
  if (isa() == Isa::kAvx512) return avx512_kernels(dtype, reading());
  if (isa() == Isa::kAvx2) return avx2_kernels(dtype, reading());
#endif
  return scalar_kernels(dtype);
}

namespace {

FinishScratch& thread_scratch() {
  static thread_local FinishScratch scratch;
  return scratch;
}

// A wave of rows whose scans are held at once.
struct Wave {
  const MixParams& params;
  const MixOutput& out;
  int64_t first_row;
  int64_t anchor_blocks;
  int64_t blocks;  // of both tensors
  BlockScan* scans;
  std::atomic<int64_t>* unscanned;  // blocks of each row

  static void task(void* context, int64_t item) {
    auto& wave = *static_cast<Wave*>(context);
    const int64_t slot = item / wave.blocks;
    const int64_t block = item % wave.blocks;
    const int64_t row = wave.first_row + slot;
    BlockScan* scans = wave.scans + slot * wave.blocks;
    if (block < wave.anchor_blocks) {
      Row(wave.params.anchor, row).scan_block(block, true, scans + block);
    } else {
      const bool with_maxima = wave.params.support == Support::kUnion;
      Row(wave.params.target, row)
          .scan_block(block - wave.anchor_blocks, with_maxima, scans + block);
    }
    if (wave.unscanned[slot].fetch_sub(1, std::memory_order_acq_rel) == 1) {
      RowFinish(wave.params, wave.out, row, thread_scratch())
          .run(scans, scans + wave.anchor_blocks);
    }
  }
};

}  // namespace

const char* mix_topk_cpu(const MixParams& params, const MixOutput& out, int threads) {
  if (const char* error = check_params(params, out)) return error;
  const int64_t rows = params.anchor.num_rows;
  const int64_t anchor_blocks = blocks_of(params.anchor.num_cols);
  const int64_t blocks = anchor_blocks + blocks_of(params.target.num_cols);
  threads = std::clamp(threads, 1, kMaxThreads);
  // One thread keeps one row's scans in its L1; several share a wave long
  // enough to level them out.
  const int64_t wave_rows = std::min<int64_t>(rows, threads == 1 ? 1 : 8 * threads);
  static thread_local std::vector<BlockScan> scans;
  scans.resize(static_cast<size_t>(wave_rows * blocks));
  const auto unscanned = std::make_unique<std::atomic<int64_t>[]>(wave_rows);
  for (int64_t first = 0; first < rows; first += wave_rows) {
    const int64_t count = std::min(wave_rows, rows - first);
    for (int64_t i = 0; i < count; ++i) unscanned[i].store(blocks, std::memory_order_relaxed);
    Wave wave{params, out, first, anchor_blocks, blocks, scans.data(), unscanned.get()};
    parallel_for(count * blocks, threads, &Wave::task, &wave);
  }
  return nullptr;
}

const char* cpu_reads() { return reading() == Reading::kOnePlace ? "one" : "many"; }

const char* cpu_isa() {
  switch (isa()) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "scalar";
  }
}

}  // namespace alignbeam
