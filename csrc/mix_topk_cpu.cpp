// SPDX-License-Identifier: Apache-2.0
// F(d) = (alpha a(d) + (1 - alpha) q(d)) / sum, or its log-mixed form, over the
// translated top_b. One block of 16,384 columns of one row at a time is a work
// item; whoever finishes a row's last block selects, mixes and writes that row.
// Reads every logit once, plus the tiles of the anchor that can hold its top_b,
// plus one target logit for each translated id. Partial results are merged in
// column order, never in arrival order.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "cpu_scan.h"
#include "ops.h"
#include "scalar.h"
#include "thread_pool.h"

namespace alignbeam {
namespace {

int64_t item_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

int64_t blocks_of(int64_t columns) { return (columns + kBlock - 1) / kBlock; }

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

const ScanKernels& kernels(DType dtype) {
#if defined(ALIGNBEAM_X86)
  if (isa() == Isa::kAvx512) return avx512_kernels(dtype);
  if (isa() == Isa::kAvx2) return avx2_kernels(dtype);
#endif
  return scalar_kernels(dtype);
}

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
        scan(&kernels(view.dtype)) {}

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

struct Scratch {
  std::vector<int16_t> delegates;
  std::vector<int64_t> tiles;  // that hold a candidate, by first column
  std::vector<uint64_t> ranks;
  std::vector<uint64_t> anchor_ranks;
  std::vector<double> probabilities;   // of anchor_ranks
  std::vector<uint64_t> ranked_ids;    // target id << 32 | rank within the anchor's top_b
  std::vector<Translated> translated;  // ascending ids
  std::vector<Choice> choices;
  std::vector<BlockScan> rescans;
};

// The `wanted`-th largest of maxima of disjoint groups, cut to a short key: at
// least that many logits reach it.
int32_t safe_threshold(const BlockScan* scans, int64_t blocks, int wanted, Scratch& scratch) {
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
void select_top(const Row& row, const BlockScan* scans, int wanted, Scratch& scratch,
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
  RowFinish(const MixParams& params, const MixOutput& out, int64_t row, Scratch& scratch)
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
    select_top(anchor_, anchor_scans, params_.top_b, scratch_, scratch_.anchor_ranks);
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
  // lies.
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
    select_top(target_, target_scans, wanted, scratch_, scratch_.ranks);
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
    select_top(target_, scans.data(), params_.top_k, scratch_, scratch_.ranks);
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
  Scratch& scratch_;
  LogSum anchor_total_{};
  LogSum target_total_{};
  bool by_weight_ = false;  // choices are ranked by f, not by its logarithm
};

Scratch& thread_scratch() {
  static thread_local Scratch scratch;
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
