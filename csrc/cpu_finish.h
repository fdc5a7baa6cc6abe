// SPDX-License-Identifier: Apache-2.0
// Everything of a row that follows its scans: selection, translation, mixing,
// and the outputs.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu_select.h"
#include "ops.h"
#include "scalar.h"

namespace alignbeam {
namespace {

// A token id that may be chosen.
struct Choice {
  int64_t id;
  double order;  // what it is ranked by
  double log_f;
};

bool before(const Choice& a, const Choice& b) {
  return a.order > b.order || (a.order == b.order && a.id < b.id);
}

// One target id that anchor ids translate to: their summed mass, and its logit.
struct Translated {
  int64_t id;
  float logit;
  double mass;  // a(d)
  double log_mass;
};

struct FinishScratch {
  SelectScratch select;
  std::vector<uint64_t> ranks;
  std::vector<uint64_t> anchor_ranks;
  std::vector<double> probabilities;   // of anchor_ranks
  std::vector<uint64_t> ranked_ids;    // target id << 32 | rank within the anchor's top_b
  std::vector<Translated> translated;  // ascending ids
  std::vector<Choice> choices;
  std::vector<BlockScan> rescans;
};

// The sum of logarithmic terms, in their order.
class LogAccumulator {
 public:
  void add(double term) { total_ = log_add_exp(total_, term); }
  double total() const { return total_; }

 private:
  double total_ = -INFINITY;
};

// Everything of a row that follows its scans.
class RowFinish {
 public:
  RowFinish(const MixParams& params, const MixOutput& out, int64_t row, FinishScratch& scratch)
      : params_(params),
        out_(out),
        row_(row),
        anchor_(params.anchor, row),
        target_(params.target, row),
        alpha_(params.alpha ? params.alpha[row] : params.alpha_scalar),
        mixer_(alpha_, params.mix == Mix::kLinear),
        scratch_(scratch) {}

  void run(const BlockScan* anchor_scans, const BlockScan* target_scans) {
    anchor_total_ = merge_sums(anchor_scans, blocks_of(anchor_.columns));
    target_total_ = merge_sums(target_scans, blocks_of(target_.columns));
    const bool alpha_ok = alpha_ >= 0.0f && alpha_ <= 1.0f;
    if (!alpha_ok || !is_distribution(anchor_total_) || !is_distribution(target_total_)) {
      return refuse();
    }
    select_top(anchor_, anchor_scans, params_.top_b, scratch_.select, scratch_.anchor_ranks);
    if (!translate()) return refuse();
    double log_sum = mix();
    if (params_.support == Support::kUnion) log_sum = widen(target_scans, log_sum);
    int32_t flags = 0;
    if (log_sum == -INFINITY) {  // nothing in the support has any probability
      fall_back();
      log_sum = 0.0;
      flags = kEmptySupport;
    }
    write(log_sum, flags);
  }

 private:
  // Sums the anchor's mass; collects the translated ids. False if the table
  // points outside the target's vocabulary.
  bool translate() {
    const auto& ranks = scratch_.anchor_ranks;
    auto& probabilities = scratch_.probabilities;
    auto& ids = scratch_.ranked_ids;
    // Neither the table nor the target's logits are in the caches: asked for at
    // once, they come together, while the exponentials are computed.
    for (const uint64_t rank : ranks) __builtin_prefetch(params_.table + rank_id(rank));
    double anchor_mass = 0.0;
    probabilities.clear();
    for (const uint64_t rank : ranks) {
      probabilities.push_back(std::exp(log_prob(rank_logit(rank), anchor_total_)));
      anchor_mass += probabilities.back();
    }
    double translated_mass = 0.0;
    ids.clear();
    for (size_t i = 0; i < ranks.size(); ++i) {
      const int32_t id = params_.table[rank_id(ranks[i])];
      if (id < -1 || id >= target_.columns) return false;
      if (id < 0) continue;
      __builtin_prefetch(target_.at(id));
      translated_mass += probabilities[i];
      ids.push_back(static_cast<uint64_t>(id) << 32 | i);
    }
    out_.anchor_mass[row_] = static_cast<float>(anchor_mass);
    out_.translated_mass[row_] = static_cast<float>(translated_mass);
    std::sort(ids.begin(), ids.end());  // equal target ids side by side, in rank order
    auto& translated = scratch_.translated;
    translated.clear();
    for (const uint64_t ranked : ids) {
      const auto id = static_cast<int64_t>(ranked >> 32);
      const size_t i = ranked & 0xffffffffu;
      const double log_p = log_prob(rank_logit(ranks[i]), anchor_total_);
      if (translated.empty() || translated.back().id != id) {
        translated.push_back({id, target_.logit(id), probabilities[i], log_p});
      } else {
        Translated& last = translated.back();
        last.mass += probabilities[i];
        last.log_mass = log_add_exp(last.log_mass, log_p);
      }
    }
    return true;
  }

  // Below this, products of probabilities lose digits, and logarithms take
  // over.
  static constexpr double kLeastWeight = 1e-280;

  // f of the translated ids; returns log(sum of f).
  double mix() {
    double target_mass = 0.0;
    double sum = 0.0;
    double least = INFINITY;
    const double rest = 1.0 - mixer_.alpha;
    scratch_.choices.clear();
    for (const Translated& t : scratch_.translated) {
      const double q = std::exp(log_prob(t.logit, target_total_));
      const double f = mixer_.alpha * t.mass + rest * q;
      target_mass += q;
      sum += f;
      least = std::min(least, f);
      scratch_.choices.push_back({t.id, f, NAN});
    }
    out_.target_mass[row_] = static_cast<float>(target_mass);
    // Linear mixing needs the logarithms of those chosen alone.
    by_weight_ = mixer_.linear && mixer_.alpha > 0.0 && mixer_.alpha < 1.0 &&
                 least >= kLeastWeight && params_.support == Support::kAnchor;
    return by_weight_ ? std::log(sum) : mix_logs();
  }

  double mix_logs() {
    LogAccumulator log_f_sum;
    scratch_.choices.clear();
    for (const Translated& t : scratch_.translated) {
      const double log_q = log_prob(t.logit, target_total_);
      add_choice(t.id, t.logit, mixer_(t.log_mass, log_q));
      log_f_sum.add(scratch_.choices.back().log_f);
    }
    return log_f_sum.total();
  }

  // At alpha = 0, F is q: ranked by the logit itself, two neighbouring logits
  // cannot tie.
  void add_choice(int64_t id, float logit, double log_f) {
    scratch_.choices.push_back({id, mixer_.alpha == 0.0 ? logit : log_f, log_f});
  }

  // Adds the ids outside the translated set that could be chosen; returns
  // log(sum of f).
  double widen(const BlockScan* target_scans, double log_f_sum) {
    out_.target_mass[row_] = 1.0f;
    const auto& translated = scratch_.translated;
    const auto is_translated = [&](int64_t id) {
      const auto at = std::lower_bound(translated.begin(), translated.end(), id,
                                       [](const Translated& t, int64_t i) { return t.id < i; });
      return at != translated.end() && at->id == id;
    };
    const bool zero_outside = mixer_.alpha == 1.0 || (!mixer_.linear && mixer_.alpha > 0.0);
    const size_t inside = scratch_.choices.size();
    if (zero_outside) {  // they tie at f = 0: the lowest ids come first
      for (int64_t id = 0; id < target_.columns; ++id) {
        if (scratch_.choices.size() == inside + params_.top_k) break;
        if (!is_translated(id)) add_choice(id, -INFINITY, -INFINITY);
      }
      return log_f_sum;
    }
    const int wanted = static_cast<int>(inside) + params_.top_k;
    select_top(target_, target_scans, wanted, scratch_.select, scratch_.ranks);
    for (const uint64_t rank : scratch_.ranks) {
      const uint32_t id = rank_id(rank);
      if (is_translated(id)) continue;
      const float logit = rank_logit(rank);
      add_choice(id, logit, mixer_(-INFINITY, log_prob(logit, target_total_)));
    }
    if (mixer_.alpha == 0.0) return 0.0;
    LogAccumulator log_a_sum;
    for (const Translated& t : translated) log_a_sum.add(t.log_mass);
    return log_add_exp(mixer_.log_alpha + log_a_sum.total(),
                       mixer_.log_rest);  // q sums to 1
  }

  // The target's own best.
  void fall_back() {
    auto& scans = scratch_.rescans;
    scans.resize(blocks_of(target_.columns));
    for (size_t b = 0; b < scans.size(); ++b) target_.scan_block(b, true, &scans[b]);
    select_top(target_, scans.data(), params_.top_k, scratch_.select, scratch_.ranks);
    scratch_.choices.clear();
    by_weight_ = false;
    for (const uint64_t rank : scratch_.ranks) {
      const float logit = rank_logit(rank);
      scratch_.choices.push_back({rank_id(rank), logit, log_prob(logit, target_total_)});
    }
  }

  void write(double log_sum, int32_t flags) {
    auto& choices = scratch_.choices;
    const size_t count = std::min<size_t>(params_.top_k, choices.size());
    std::partial_sort(choices.begin(), choices.begin() + count, choices.end(), before);
    for (int k = 0; k < params_.top_k; ++k) {
      const bool chosen = static_cast<size_t>(k) < count;
      out_.token_ids[row_ * params_.top_k + k] = chosen ? choices[k].id : -1;
      out_.logprobs[row_ * params_.top_k + k] =
          chosen ? static_cast<float>(log_f(choices[k]) - log_sum) : -INFINITY;
    }
    out_.flags[row_] = flags;
  }

  double log_f(const Choice& choice) const {
    return by_weight_ ? std::log(choice.order) : choice.log_f;
  }

  // A row without probabilities, or a table that points outside the vocabulary.
  void refuse() {
    for (int k = 0; k < params_.top_k; ++k) {
      out_.token_ids[row_ * params_.top_k + k] = -1;
      out_.logprobs[row_ * params_.top_k + k] = NAN;
    }
    out_.anchor_mass[row_] = out_.translated_mass[row_] = out_.target_mass[row_] = NAN;
    out_.flags[row_] = kNonFinite;
  }

  const MixParams& params_;
  const MixOutput& out_;
  const int64_t row_;
  const Row anchor_;
  const Row target_;
  const float alpha_;
  const Mixer mixer_;
  FinishScratch& scratch_;
  LogSum anchor_total_{};
  LogSum target_total_{};
  bool by_weight_ = false;  // choices are ranked by f, not by its logarithm
};

}  // namespace
}  // namespace alignbeam
