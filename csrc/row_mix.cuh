// SPDX-License-Identifier: Apache-2.0
// Mixing, normalising and the choice of a row, by one warp, once its slots and totals are there.
#pragma once

#include "slots.cuh"

namespace alignbeam {
namespace {

struct RowMix {
  const MixParams& params;
  const MixOutput& out;
  const int64_t row;
  Shared& s;
  const RowMixer mixer;

  __device__ __forceinline__ RowMix(const MixParams& params_, const MixOutput& out_, int64_t row_,
                                    Shared& s_)
      : params(params_),
        out(out_),
        row(row_),
        s(s_),
        mixer(params_.alpha != nullptr ? load_once(params_.alpha + row_) : params_.alpha_scalar,
              params_.mix == Mix::kLinear) {}

  // False for a row that is refused for its alpha or its target.
  __device__ __forceinline__ bool exists() const {
    return mixer.valid() && is_distribution(s.totals[1]);
  }

  // Where ids outside the translated set have a share, they are looked at too.
  __device__ __forceinline__ bool widens() const {
    return params.support == Support::kUnion &&
           (mixer.linear ? mixer.alpha < 1.0 : mixer.alpha == 0.0);
  }

  // The usual case: few slots, a linear mix, no two of the best alike. Writes the row, or gives
  // false and has written nothing.
  __device__ __forceinline__ bool mix_quickly(int slots) {
    constexpr int kTiny = 0x0da24260;  // 1e-30f: below, float32 is too coarse
    const LogSum total = s.totals[1];
    if (slots < 0 || slots > 64 || params.support != Support::kAnchor || !mixer.linear ||
        !(mixer.alpha > 0.0 && mixer.alpha < 1.0) || !is_distribution(total)) {
      return false;
    }
    const int lane = thread_index() % 32;
    const auto alpha = static_cast<float>(mixer.alpha);
    const auto rest = static_cast<float>(1.0 - mixer.alpha);
    float f_mass = 0.0f;
    float target_mass = 0.0f;
    int key[2];  // of the lane's slots: positive floats sort as their bits
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int i = lane + 32 * h;
      // Where there is no slot, what is computed of it counts for nothing.
      const bool leads = i < slots && s.ids[i] >= 0;
      const float q = exp_of(log_prob(s.logit[i], total));
      const float f = fmaf(alpha, exp_of(s.log_a[i]), rest * q);
      key[h] = leads ? float_bits(f) : -1;
      f_mass += leads ? f : 0.0f;
      target_mass += leads ? q : 0.0f;
    }
    int slot = 0;  // lane k: of the k-th best
    int chosen = 0;
#pragma unroll 1
    for (int k = 0; k < params.top_k; ++k) {
      const int most = warp_max(key[0] > key[1] ? key[0] : key[1]);
      const unsigned low = warp_ballot(key[0] == most);
      const unsigned high = warp_ballot(key[1] == most);
      if (most < kTiny || count_bits(low) + count_bits(high) != 1) return false;
      if (lane == k) {
        slot = first_bit64(low | static_cast<uint64_t>(high) << 32);
        chosen = most;
      }
      if (key[0] == most) key[0] = -1;
      if (key[1] == most) key[1] = -1;
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      f_mass += shuffle_xor(f_mass, step);
      target_mass += shuffle_xor(target_mass, step);
    }
    if (lane < params.top_k) {
      out.token_ids[row * params.top_k + lane] = s.ids[slot];
      out.logprobs[row * params.top_k + lane] =
          static_cast<float>(log_of(bits_float(chosen)) - log_of(f_mass));
    }
    if (lane == 31) {
      out.target_mass[row] = target_mass;
      out.flags[row] = 0;
    }
    return true;
  }

  // One lane of a warp does so.
  __device__ __forceinline__ void write_masses(const Translated& t) const {
    if (thread_index() % 32 == 0) {
      out.anchor_mass[row] = t.anchor_mass;
      out.translated_mass[row] = t.translated_mass;
    }
  }

  // Mixes the slots into s.slots, s.log_sum and s.flags. Returns how many of the target's own best
  // are needed besides, or -1 for a row that is refused.
  __device__ __forceinline__ int mix(const Translated& t) {
    const LogSum total = s.totals[1];
    if (!exists() || t.slots < 0) {
      refuse();
      return -1;
    }
    const int lane = thread_index() % 32;
    float f_mass = 0.0f;
    float target_mass = 0.0f;
#pragma unroll 2
    for (int i = lane; i < t.slots; i += 32) {
      // Where a slot holds no choice, what is computed of it counts for nothing.
      const bool leads = s.ids[i] >= 0;
      const float logit = s.logit[i];
      const double log_q = log_prob(logit, total);
      const double log_f = mixer(s.log_a[i], log_q);
      f_mass += leads ? exp_of(log_f) : 0.0f;
      target_mass += leads ? exp_of(log_q) : 0.0f;
      put(i, logit, log_f);
    }
    warp_sync();
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      f_mass += shuffle_xor(f_mass, step);
      target_mass += shuffle_xor(target_mass, step);
    }
    write_masses(t);
    if (lane == 0) {
      out.target_mass[row] = params.support == Support::kUnion ? 1.0f : target_mass;
    }
    const bool wide = widens();
    const float mass = wide ? t.translated_mass : f_mass;
    int count = t.slots;
    // Too small to have been added up without a shift?
    double log_sum = mass > 1e-3f ? log_of(mass) : log_sum_exp(wide ? s.log_a : s.log_f, count);
    if (wide) {  // q sums to 1
      log_sum = mixer.alpha == 0.0 ? 0.0 : log_add(mixer.log_alpha() + log_sum, mixer.log_rest());
    } else if (params.support == Support::kUnion) {
      add_lowest(count);
    }
    const bool empty = !wide && log_sum == -INFINITY;  // nothing in it has any probability
    if (lane == 0) {
      s.slots = empty ? 0 : count;
      s.log_sum = empty ? 0.0 : log_sum;
      s.flags = empty ? kEmptySupport : 0;
    }
    warp_sync();
    return wide ? params.top_b + params.top_k : empty ? params.top_k : 0;
  }

  // The target's own best, s.column[0..best), join the slots: those outside the translated set,
  // mixed; or, of an empty support, all of them as they are.
  __device__ __forceinline__ void add_target_best(int best) {
    const LogSum total = s.totals[1];
    const int first = s.slots;
    const bool empty = s.flags != 0;
#pragma unroll 1
    for (int i = thread_index() % 32; i < best; i += 32) {
      const int32_t id = s.column[i];
      const float logit = s.selected[i];
      const double log_q = log_prob(logit, total);
      if (empty) {
        s.ids[i] = id;
        s.order[i] = logit;
        s.log_f[i] = log_q;
      } else {
        s.ids[first + i] = is_translated(id, first) ? -1 : id;
        put(first + i, logit, mixer(-INFINITY, log_q));
      }
    }
    warp_sync();
    if (thread_index() % 32 == 0) s.slots = first + best;
    warp_sync();
  }

  // The top_k slots by (order descending, id ascending), to the output. Uses the slots up.
  __device__ __forceinline__ void choose() {
    const int lane = thread_index() % 32;
    const int count = s.slots;
    const double log_sum = s.log_sum;
    int64_t* const ids = out.token_ids + row * params.top_k;
    float* const logprobs = out.logprobs + row * params.top_k;
    Choice best = best_of(count);
#pragma unroll 1
    for (int k = 0; k < params.top_k; ++k) {
      // Rounded, orders stay in order: only those that round alike need more than one word.
      const int key = best.slot < 0 ? INT32_MIN : order_key(static_cast<float>(best.order));
      const int most = warp_max(key);
      if (most == INT32_MIN) {  // fewer than top_k
        if (lane >= k && lane < params.top_k) {
          ids[lane] = -1;
          logprobs[lane] = -INFINITY;
        }
        break;
      }
      unsigned first = warp_ballot(key == most);
      if (count_bits(first) > 1) first = first_of_equals(best, first);
      if ((first >> lane & 1) != 0) {
        ids[k] = best.id;
        logprobs[k] = static_cast<float>(s.log_f[best.slot] - log_sum);
        s.ids[best.slot] = -1;
        best = best_of(count);
      }
    }
    if (lane == 0) out.flags[row] = s.flags;
  }

 private:
  struct Choice {
    double order;
    int id;
    int slot;  // -1: none
  };

  static __device__ __forceinline__ bool precedes(double a, int a_id, double b, int b_id) {
    return a > b || (a == b && a_id < b_id);
  }

  // Of the lane's own slots.
  __device__ __forceinline__ Choice best_of(int count) const {
    Choice best{0.0, 0, -1};
#pragma unroll 2
    for (int i = thread_index() % 32; i < count; i += 32) {
      const int id = s.ids[i];
      const double order = s.order[i];
      if (id >= 0 && (best.slot < 0 || precedes(order, id, best.order, best.id))) {
        best = {order, id, i};
      }
    }
    return best;
  }

  // Of the lanes in `equals`, a bit each.
  static __device__ __forceinline__ unsigned first_of_equals(const Choice& mine, unsigned equals) {
    int before = (equals >> (thread_index() % 32) & 1) != 0 ? 0 : 1;
#pragma unroll 1
    for (int from = 0; from < 32; ++from) {
      const double order = shuffle_from(mine.order, from);
      const int id = shuffle_from(mine.id, from);
      if ((equals >> from & 1) != 0) before += precedes(order, id, mine.order, mine.id);
    }
    return warp_ballot(before == 0);
  }

  // At alpha = 0, F is q: ranked by the logit itself, two neighbouring logits cannot tie.
  __device__ __forceinline__ void put(int slot, float logit, double log_f) {
    s.order[slot] = mixer.alpha == 0.0 ? logit : log_f;
    s.log_f[slot] = log_f;
  }

  __device__ __forceinline__ bool is_translated(int32_t id, int slots) const {
#pragma unroll 1
    for (int i = 0; i < slots; ++i) {
      if (s.ids[i] == id) return true;
    }
    return false;
  }

  // log of the sum of exp(terms[i]) where ids[i] >= 0.
  __device__ __forceinline__ double log_sum_exp(const double* terms, int count) const {
    const int lane = thread_index() % 32;
    double largest = -INFINITY;  // float32 is too coarse where the terms are huge
#pragma unroll 1
    for (int i = lane; i < count; i += 32) {
      if (s.ids[i] >= 0 && terms[i] > largest) largest = terms[i];
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      const double other = shuffle_xor(largest, step);
      if (other > largest) largest = other;
    }
    if (largest == -INFINITY) return largest;
    float sum = 0.0f;
#pragma unroll 1
    for (int i = lane; i < count; i += 32) {
      if (s.ids[i] >= 0) sum += exp_of(terms[i] - largest);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += shuffle_xor(sum, step);
    return largest + log_of(sum);
  }

  // Outside the translated set, all tie at f = 0: the lowest ids come first.
  __device__ __forceinline__ void add_lowest(int& count) {
    if (thread_index() % 32 == 0) {
      int32_t id = 0;
      for (int k = 0; k < params.top_k; ++k, ++id) {
        while (id < s.rows[1].columns && is_translated(id, count)) ++id;
        s.ids[count + k] = id < s.rows[1].columns ? id : -1;
        put(count + k, -INFINITY, -INFINITY);
      }
    }
    count += params.top_k;
    warp_sync();
  }

  // A row without probabilities, or a table that points outside the vocabulary.
  __device__ __forceinline__ void refuse() {
    const int lane = thread_index() % 32;
    if (lane < params.top_k) {
      out.token_ids[row * params.top_k + lane] = -1;
      out.logprobs[row * params.top_k + lane] = NAN;
    }
    if (lane == 0) {
      out.anchor_mass[row] = out.translated_mass[row] = out.target_mass[row] = NAN;
      out.flags[row] = kNonFinite;
    }
  }
};

}  // namespace
}  // namespace alignbeam
