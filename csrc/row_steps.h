// SPDX-License-Identifier: Apache-2.0
// What follows the reading of a row on a GPU: merge of the chunks' sums, exact
// selection, epilogue. Written over a Group (the threads that share the work),
// so that the CPU tests run these very lines with a group of one over the same
// chunk grid; only the Group itself waits for a GPU.
//
// A Group provides rank(), size(), sync(), and collectives that every member
// must call and whose result every member gets: sum(int), sum(double),
// max(double), prefix(bool, int& total) (how many members of lower rank gave
// true) and best(Ranked).
#pragma once

#include "ops.h"
#include "scalar.h"

namespace alignbeam {

// The chunk grid: fixed, so that a row's bits depend on nothing but the row.
inline constexpr int kChunkColumns = 2048;  // one warp reads a chunk
inline constexpr int kGroupColumns = 256;   // a group's maximum is kept, for the selection
inline constexpr int kGroupsPerChunk = kChunkColumns / kGroupColumns;
inline constexpr int kSubgroupColumns = 8;  // 16 bytes of a 16-bit type
inline constexpr int kSubgroupsPerGroup = kGroupColumns / kSubgroupColumns;

namespace {

ALIGNBEAM_HD int64_t chunks_of(int64_t columns) {
  return (columns + kChunkColumns - 1) / kChunkColumns;
}

// Order keys carry no more bits than the type has: 16, 19 (a half's, as a
// float) or 32.
ALIGNBEAM_HD int key_shift(DType dtype) {
  return dtype == DType::kBFloat16 ? 16 : dtype == DType::kFloat16 ? 13 : 0;
}

// One row of one tensor, and what its chunks left behind.
struct RowData {
  const void* logits;
  int64_t columns;
  DType dtype;
  const PartialSum* sums;    // [chunks]
  const int32_t* group_max;  // [chunks * kGroupsPerChunk], short order keys

  ALIGNBEAM_HD float logit(int64_t column) const {
    if (dtype == DType::kFloat32) return static_cast<const float*>(logits)[column];
    const uint16_t half = static_cast<const uint16_t*>(logits)[column];
    return dtype == DType::kBFloat16 ? bfloat16_to_float(half) : half_to_float(half);
  }
  // Below every logit's where there is no such column.
  ALIGNBEAM_HD int32_t key(int64_t column) const {
    return (column < columns ? order_key(logit(column)) : INT32_MIN) >> key_shift(dtype);
  }
};

struct Ranked {
  double order;
  int32_t id;
  int32_t slot;  // where it is kept; -1: none
};
ALIGNBEAM_HD bool ranks_before(const Ranked& a, const Ranked& b) {
  if (a.slot < 0 || b.slot < 0) return b.slot < 0 && a.slot >= 0;
  return a.order > b.order || (a.order == b.order && a.id < b.id);
}

inline constexpr int kMaxWanted = kMaxTopB + kMaxTopK;

// Memory that a group shares while it finishes a row. `wanted` is the most that
// one selection keeps.
struct RowScratch {
  int32_t* keys;     // [wanted * kSubgroupsPerGroup]
  int32_t* groups;   // [wanted]
  int32_t* inner;    // [wanted]
  int32_t* kept;     // [wanted]
  int32_t* columns;  // [wanted]
  int32_t* to;       // [wanted], target id of each selected anchor id
  double* log_p;     // [wanted]
  double* order;     // [2 * wanted]
  double* log_f;     // [2 * wanted]
  int32_t* ids;      // [2 * wanted], -1 where the slot holds no choice

  ALIGNBEAM_HD static int64_t bytes(int wanted) {
    return wanted * (5 * 8 + (kSubgroupsPerGroup + 5 + 2) * 4);
  }
  // `memory` is aligned to 8 bytes; the doubles lie first.
  ALIGNBEAM_HD RowScratch(void* memory, int wanted) {
    log_p = static_cast<double*>(memory);
    order = log_p + wanted;
    log_f = order + 2 * wanted;
    keys = reinterpret_cast<int32_t*>(log_f + 2 * wanted);
    groups = keys + wanted * kSubgroupsPerGroup;
    inner = groups + wanted;
    kept = inner + wanted;
    columns = kept + wanted;
    to = columns + wanted;
    ids = to + wanted;
  }
};

// Writes the indices of the `wanted` largest of `count` keys of `bits` bits,
// ties to the lower index, in ascending order; returns how many (all of them
// where there are fewer).
template <class Group, class KeyAt>
ALIGNBEAM_HD int keep_top(Group& group, KeyAt key_at, int count, int wanted, int bits,
                          int32_t* kept) {
  if (count <= wanted) {
    for (int i = group.rank(); i < count; i += group.size()) kept[i] = i;
    group.sync();
    return count;
  }
  const uint32_t bias = 1u << (bits - 1);
  uint32_t threshold = 0;  // becomes the wanted-th largest
  for (uint32_t bit = bias; bit != 0; bit >>= 1) {
    int reached = 0;
    for (int i = group.rank(); i < count; i += group.size()) {
      reached += static_cast<uint32_t>(key_at(i)) + bias >= (threshold | bit);
    }
    if (group.sum(reached) >= wanted) threshold |= bit;
  }
  int above = 0;
  for (int i = group.rank(); i < count; i += group.size()) {
    above += static_cast<uint32_t>(key_at(i)) + bias > threshold;
  }
  const int ties_wanted = wanted - group.sum(above);
  int written = 0;
  int ties_seen = 0;
  for (int begin = 0; begin < count; begin += group.size()) {
    const int i = begin + group.rank();
    const uint32_t key = i < count ? static_cast<uint32_t>(key_at(i)) + bias : 0;
    const bool tie = i < count && key == threshold;
    int ties;
    const int tie_rank = ties_seen + group.prefix(tie, ties);
    const bool keep = i < count && (key > threshold || (tie && tie_rank < ties_wanted));
    int keeps;
    const int position = written + group.prefix(keep, keeps);
    if (keep) kept[position] = i;
    ties_seen += ties;
    written += keeps;
  }
  group.sync();
  return written;
}

// Writes the columns of the `wanted` largest logits, ties to the lower column,
// in ascending order, to scratch.columns; returns how many. Exact: the largest
// `wanted` elements lie in the `wanted` groups with the largest maxima,
// whatever the data, because groups are runs of columns and ties go to the
// lower one. The same again for the subgroups of those groups. No path depends
// on the data, so none can overflow.
template <class Group>
ALIGNBEAM_HD int select_columns(Group& group, const RowData& row, int wanted, RowScratch& s) {
  const int bits = 32 - key_shift(row.dtype);
  const auto groups_in_row = static_cast<int>((row.columns + kGroupColumns - 1) / kGroupColumns);
  const int32_t* group_max = row.group_max;
  const int groups =
      keep_top(group, [=](int i) { return group_max[i]; }, groups_in_row, wanted, bits, s.groups);

  const int subgroups = groups * kSubgroupsPerGroup;
  for (int i = group.rank(); i < subgroups; i += group.size()) {
    const int64_t first = static_cast<int64_t>(s.groups[i / kSubgroupsPerGroup]) * kGroupColumns +
                          i % kSubgroupsPerGroup * kSubgroupColumns;
    int32_t largest = row.key(first);
    for (int j = 1; j < kSubgroupColumns; ++j) {
      const int32_t key = row.key(first + j);
      largest = key > largest ? key : largest;
    }
    s.keys[i] = largest;
  }
  group.sync();
  const int32_t* keys = s.keys;
  const int inner =
      keep_top(group, [=](int i) { return keys[i]; }, subgroups, wanted, bits, s.inner);

  const int elements = inner * kSubgroupColumns;
  const auto column_of = [&](int i) {
    const int subgroup = s.inner[i / kSubgroupColumns];
    return static_cast<int64_t>(s.groups[subgroup / kSubgroupsPerGroup]) * kGroupColumns +
           subgroup % kSubgroupsPerGroup * kSubgroupColumns + i % kSubgroupColumns;
  };
  // keep_top's last barrier stands between its reads of the keys and these
  // writes.
  for (int i = group.rank(); i < elements; i += group.size()) s.keys[i] = row.key(column_of(i));
  group.sync();
  const int kept = keep_top(group, [=](int i) { return keys[i]; }, elements, wanted, bits, s.kept);
  // A row shorter than `wanted` leaves columns beyond its end, which sort
  // behind all others.
  int real = 0;
  for (int i = group.rank(); i < kept; i += group.size()) {
    const int64_t column = column_of(s.kept[i]);
    s.columns[i] = static_cast<int32_t>(column);
    real += column < row.columns;
  }
  const int count = group.sum(real);
  group.sync();
  return count;
}

template <class Group>
ALIGNBEAM_HD LogSum merge_sums(Group& group, const PartialSum* parts, int64_t count) {
  double shift = -INFINITY;
  for (int64_t i = group.rank(); i < count; i += group.size()) {
    if (parts[i].shift > shift) shift = parts[i].shift;
  }
  shift = group.max(shift);
  double sum = 0.0;
  for (int64_t i = group.rank(); i < count; i += group.size()) {
    // A fully masked chunk adds nothing; exp(-inf - -inf) would make it NaN.
    if (parts[i].sum != 0.0f) sum += parts[i].sum * exp(parts[i].shift - shift);
  }
  return {shift, log(group.sum(sum))};
}

// log of the sum of exp(terms[i]) where ids[i] >= 0.
template <class Group>
ALIGNBEAM_HD double log_sum_exp(Group& group, const double* terms, const int32_t* ids, int count) {
  double largest = -INFINITY;
  for (int i = group.rank(); i < count; i += group.size()) {
    if (ids[i] >= 0 && terms[i] > largest) largest = terms[i];
  }
  largest = group.max(largest);
  if (largest == -INFINITY) return largest;
  double sum = 0.0;
  for (int i = group.rank(); i < count; i += group.size()) {
    if (ids[i] >= 0) sum += exp(terms[i] - largest);
  }
  return largest + log(group.sum(sum));
}

template <class Group>
struct RowFinisher {
  Group& group;
  const MixParams& params;
  const MixOutput& out;
  int64_t row;
  RowData anchor;
  RowData target;
  RowScratch s;

  ALIGNBEAM_HD void run() {
    const float alpha = params.alpha != nullptr ? params.alpha[row] : params.alpha_scalar;
    const LogSum anchor_total = merge_sums(group, anchor.sums, chunks_of(anchor.columns));
    const LogSum target_total = merge_sums(group, target.sums, chunks_of(target.columns));
    if (!(alpha >= 0.0f && alpha <= 1.0f) || !is_distribution(anchor_total) ||
        !is_distribution(target_total)) {
      return refuse();
    }
    const Mixer mixer(alpha, params.mix == Mix::kLinear);
    const int selected = select_columns(group, anchor, params.top_b, s);
    if (!translate(selected, anchor_total)) return refuse();
    int count = mix_translated(selected, mixer, target_total);
    double log_sum = log_sum_exp(group, s.log_f, s.ids, count);
    if (params.support == Support::kUnion) {
      log_sum = widen(count, log_sum, mixer, target_total);
    }
    int32_t flags = 0;
    if (log_sum == -INFINITY) {  // nothing in the support has any probability
      count = add_target_best(0, params.top_k, 0, target_total, nullptr);
      log_sum = 0.0;
      flags = kEmptySupport;
    }
    write(count, log_sum, flags);
  }

  // Sums the anchor's mass and looks up the selected ids. False if the table
  // points outside the target's vocabulary.
  ALIGNBEAM_HD bool translate(int selected, LogSum total) {
    double anchor_mass = 0.0;
    double translated_mass = 0.0;
    int outside = 0;
    for (int i = group.rank(); i < selected; i += group.size()) {
      s.log_p[i] = log_prob(anchor.logit(s.columns[i]), total);
      const int32_t id = params.table[s.columns[i]];
      s.to[i] = id;
      outside += id < -1 || id >= target.columns;
      const double p = exp(s.log_p[i]);
      anchor_mass += p;
      if (id >= 0) translated_mass += p;
    }
    outside = group.sum(outside);
    anchor_mass = group.sum(anchor_mass);
    translated_mass = group.sum(translated_mass);
    group.sync();
    if (outside != 0) return false;
    if (group.rank() == 0) {
      out.anchor_mass[row] = static_cast<float>(anchor_mass);
      out.translated_mass[row] = static_cast<float>(translated_mass);
    }
    return true;
  }

  // One slot per selected id; of several with one target id, the first holds
  // them all.
  ALIGNBEAM_HD int mix_translated(int selected, const Mixer& mixer, LogSum total) {
    double target_mass = 0.0;
    for (int i = group.rank(); i < selected; i += group.size()) {
      const int32_t id = s.to[i];
      bool leads = id >= 0;
      for (int j = 0; leads && j < i; ++j) leads = s.to[j] != id;
      s.ids[i] = leads ? id : -1;
      if (!leads) continue;
      double log_a = s.log_p[i];
      for (int j = i + 1; j < selected; ++j) {
        if (s.to[j] == id) log_a = log_add_exp(log_a, s.log_p[j]);
      }
      const float logit = target.logit(id);
      const double log_q = log_prob(logit, total);
      target_mass += exp(log_q);
      put(i, id, logit, mixer(log_a, log_q), mixer);
    }
    target_mass = group.sum(target_mass);
    if (group.rank() == 0) out.target_mass[row] = static_cast<float>(target_mass);
    group.sync();
    return selected;
  }

  // At alpha = 0, F is q: ranked by the logit itself, two neighbouring logits
  // cannot tie.
  ALIGNBEAM_HD void put(int slot, int32_t id, float logit, double log_f, const Mixer& mixer) {
    s.ids[slot] = id;
    s.order[slot] = mixer.alpha == 0.0 ? logit : log_f;
    s.log_f[slot] = log_f;
  }

  ALIGNBEAM_HD bool is_translated(int32_t id, int selected) const {
    for (int i = 0; i < selected; ++i) {
      if (s.to[i] == id) return true;
    }
    return false;
  }

  // Adds the ids outside the translated set that could be chosen; returns
  // log(sum of f).
  ALIGNBEAM_HD double widen(int& count, double log_f_sum, const Mixer& mixer, LogSum total) {
    const int selected = count;
    if (group.rank() == 0) out.target_mass[row] = 1.0f;
    if (mixer.alpha == 1.0 || (!mixer.linear && mixer.alpha > 0.0)) {
      // Outside, all tie at f = 0: the lowest ids come first.
      if (group.rank() == 0) {
        int32_t id = 0;
        for (int k = 0; k < params.top_k; ++k, ++id) {
          while (id < target.columns && is_translated(id, selected)) ++id;
          const int32_t chosen = id < target.columns ? id : -1;
          put(selected + k, chosen, -INFINITY, -INFINITY, mixer);
        }
      }
      count += params.top_k;
      group.sync();
      return log_f_sum;
    }
    const double log_a_sum = log_sum_exp(group, s.log_p, s.to, selected);
    count = add_target_best(selected, params.top_b + params.top_k, selected, total, &mixer);
    if (mixer.alpha == 0.0) return 0.0;
    return log_add_exp(mixer.log_alpha + log_a_sum,
                       mixer.log_rest);  // q sums to 1
  }

  // The target's own best into the slots from `first` on: those outside the
  // translated set, mixed; or without a mixer, all of them as they are. Returns
  // the end of the slots.
  ALIGNBEAM_HD int add_target_best(int first, int wanted, int selected, LogSum total,
                                   const Mixer* mixer) {
    const int best = select_columns(group, target, wanted, s);
    for (int i = group.rank(); i < best; i += group.size()) {
      const int32_t id = s.columns[i];
      const float logit = target.logit(id);
      const double log_q = log_prob(logit, total);
      if (mixer == nullptr) {
        s.ids[first + i] = id;
        s.order[first + i] = logit;
        s.log_f[first + i] = log_q;
      } else {
        put(first + i, is_translated(id, selected) ? -1 : id, logit, (*mixer)(-INFINITY, log_q),
            *mixer);
      }
    }
    group.sync();
    return first + best;
  }

  ALIGNBEAM_HD void write(int count, double log_sum, int32_t flags) {
    for (int k = 0; k < params.top_k; ++k) {
      Ranked best{0.0, 0, -1};
      for (int i = group.rank(); i < count; i += group.size()) {
        const Ranked candidate{s.order[i], s.ids[i], s.ids[i] < 0 ? -1 : i};
        if (ranks_before(candidate, best)) best = candidate;
      }
      best = group.best(best);
      if (group.rank() == 0) {
        out.token_ids[row * params.top_k + k] = best.slot < 0 ? -1 : best.id;
        out.logprobs[row * params.top_k + k] =
            best.slot < 0 ? -INFINITY : static_cast<float>(s.log_f[best.slot] - log_sum);
        if (best.slot >= 0) s.ids[best.slot] = -1;
      }
      group.sync();
    }
    if (group.rank() == 0) out.flags[row] = flags;
  }

  // A row without probabilities, or a table that points outside the vocabulary.
  ALIGNBEAM_HD void refuse() {
    if (group.rank() != 0) return;
    for (int k = 0; k < params.top_k; ++k) {
      out.token_ids[row * params.top_k + k] = -1;
      out.logprobs[row * params.top_k + k] = NAN;
    }
    out.anchor_mass[row] = out.translated_mass[row] = out.target_mass[row] = NAN;
    out.flags[row] = kNonFinite;
  }
};

// Turns a chunk's maximum (a short order key) into the shift of its
// exponentials; 0 where the maximum is no number to subtract.
ALIGNBEAM_HD float usable_shift(float largest) {
  return largest > -INFINITY && largest < INFINITY ? largest : 0.0f;
}

// What a chunk publishes: see PartialSum.
ALIGNBEAM_HD PartialSum close_sum(float largest, float sum) {
  if (largest > -INFINITY && largest < INFINITY) return {largest, sum};
  if (largest == -INFINITY && sum == 0.0f) return {largest, 0.0f};
  return {largest, NAN};
}

}  // namespace
}  // namespace alignbeam
