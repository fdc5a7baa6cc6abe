// SPDX-License-Identifier: Apache-2.0
// A row's slots, by the whole block: selection and translation of the anchor's best, one slot for
// each target id.
#pragma once

#include "row_math.cuh"
#include "select_exactly.cuh"

namespace alignbeam {
namespace {

// Step 2 of select.cuh: the candidates for the `wanted` largest logits. All threads; the first ones
// have listed the groups, and the block has not yet synchronised. Returns how many there are.
__device__ __forceinline__ int gather_listed(int side, int wanted, const int32_t* table,
                                             Shared& s) {
  const Row& row = s.rows[side];
  block_sync();
  if (gathered(wanted, s)) {
    if (!row.aligned) {
      gather_candidates<DType::kFloat32, false>(row, table, s);
    } else if (row.dtype == DType::kBFloat16) {
      gather_candidates<DType::kBFloat16, true>(row, table, s);
    } else if (row.dtype == DType::kFloat32) {
      gather_candidates<DType::kFloat32, true>(row, table, s);
    } else {
      gather_candidates<DType::kFloat16, true>(row, table, s);
    }
  }
  block_sync();
  if (!gathered(wanted, s) || s.candidate_count > wanted + kRankAtOnce) {
    narrow_candidates(side, wanted, s);
  }
  return s.candidate_count;
}

// Of several slots with one target id, the first is made to hold them all. Four threads to a slot,
// which share the comparisons. All threads.
__device__ __forceinline__ void share_out(int selected, Shared& s) {
  const int sub = thread_index() % 4;
  const LogSum total = s.totals[0];
#pragma unroll 1
  for (int begin = 0; begin < selected; begin += kThreads / 4) {
    const int i = begin + thread_index() / 4;
    const int id = i < selected ? s.to[i] : -1;
    int same = 0;  // bit 0: an earlier one has this id; bit 1: a later one
    if (id >= 0) {
#pragma unroll 4
      for (int j = sub; j < selected; j += 4) {
        if (s.to[j] == id) same |= j < i ? 1 : j > i ? 2 : 0;
      }
    }
    same |= shuffle_xor(same, 1);
    same |= shuffle_xor(same, 2);
    if (sub == 0 && i < selected) {
      double log_a = log_prob(s.selected[i], total);
      if (same == 2) {
#pragma unroll 1
        for (int j = i + 1; j < selected; ++j) {
          if (s.to[j] == id) log_a = log_add(log_a, log_prob(s.selected[j], total));
        }
      }
      s.ids[i] = (same & 1) == 0 ? id : -1;
      s.log_a[i] = log_a;
    }
  }
  block_sync();
}

// What the anchor's side of a row gives to the mixing, besides the slots in s.ids, s.logit and
// s.log_a.
struct Translated {
  int slots;  // -1: the row is refused
  float anchor_mass;
  float translated_mass;
};

// One warp, once the slots are there.
__device__ __forceinline__ Translated add_masses(int selected, Shared& s) {
  const LogSum total = s.totals[0];
  Translated t{selected, 0.0f, 0.0f};
#pragma unroll 2
  for (int i = thread_index() % 32; i < selected; i += 32) {
    const float p = exp_of(log_prob(s.selected[i], total));
    t.anchor_mass += p;
    t.translated_mass += s.to[i] >= 0 ? p : 0.0f;
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    t.anchor_mass += shuffle_xor(t.anchor_mass, step);
    t.translated_mass += shuffle_xor(t.translated_mass, step);
  }
  if (!is_distribution(total) || s.outside != 0) t.slots = -1;
  return t;
}

}  // namespace
}  // namespace alignbeam
