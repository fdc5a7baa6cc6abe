// SPDX-License-Identifier: Apache-2.0
// The CUDA kernel on the host, block after block, by fibers. For tests: it lets a machine without a
// GPU check these very lines, barriers included. Slow, and not a backend.
#undef _FORTIFY_SOURCE  // its longjmp knows one stack only
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#include "cuda_on_host.h"
#include "mix_kernel.cuh"

namespace alignbeam {
namespace {

Shared shared;
std::mutex one_at_a_time;

// 16 bytes at a time, zero, as the launches leave it.
template <class T>
struct Zeros {
  std::vector<Int4> memory;
  explicit Zeros(int64_t count) : memory(count * sizeof(T) / sizeof(Int4) + 1, Int4{}) {}
  T* data() { return reinterpret_cast<T*>(memory.data()); }
  bool untouched() const {
    for (const Int4& m : memory) {
      if ((m.x | m.y | m.z | m.w) != 0) return false;
    }
    return true;
  }
};

}  // namespace

const char* mix_topk_host(const MixParams& params, const MixOutput& out) {
  if (const char* error = check_params(params, out)) return error;
  if (const char* error = check_widths(params)) return error;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  const int64_t rows = params.anchor.num_rows;
  if (rows == 0) return nullptr;
  Plan plan{};
  plan.anchor_chunks = chunks_of(params.anchor.num_cols);
  plan.target_chunks = chunks_of(params.target.num_cols);
  // Another layout and order at each call: all must give the same.
  static uint32_t seed = 0;
  ++seed;
  const auto processors = static_cast<int>(1 + seed * 2654435761u % 5);
  plan.at_once = seed % 2 != 0;
  lay_out(plan, rows, processors + static_cast<int>(seed * 40503u % 8), processors, 1 << seed % 3);
  const int64_t pieces = rows * (plan.anchor_chunks + plan.target_chunks) * kPiecesPerChunk;
  Zeros<uint64_t> sums(pieces);
  Zeros<uint32_t> maxima(pieces);
  plan.published = {sums.data(), maxima.data()};
  const int blocks = plan.readers + plan.finishers;
  for (int b = 0; b < blocks; ++b) {
    // The readers in either order, then the finishers: here, nobody can wait for another block.
    const int block = b < plan.readers && seed % 4 < 2 ? plan.readers - 1 - b : b;
    std::memset(static_cast<void*>(&shared), 0x5a, sizeof shared);
    fibers.run(block, seed * 1000003u + static_cast<uint32_t>(b),
               [&] { mix_topk_block(params, out, plan, shared); });
  }
  if (!sums.untouched() || !maxima.untouched()) {
    return "mix_topk: the kernel has left something for the next launch";
  }
  return nullptr;
}

}  // namespace alignbeam
