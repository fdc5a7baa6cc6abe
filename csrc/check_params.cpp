// SPDX-License-Identifier: Apache-2.0
#include "ops.h"

namespace alignbeam {
namespace {

const char* check_view(const RowView& view, const char* const messages[3]) {
  const auto dtype = static_cast<int32_t>(view.dtype);
  if (dtype < 0 || dtype > 2) return messages[0];
  // Ids travel as int32, columns as uint32; 2^31 - 1 columns bound both.
  if (view.num_rows < 0 || view.num_cols < 1 || view.num_cols > INT32_MAX) return messages[1];
  if (view.row_stride < 0 || (view.num_rows > 0 && view.data == nullptr)) return messages[2];
  return nullptr;
}

}  // namespace

const char* check_arguments(const MixParams& p) {
  static constexpr const char* kAnchor[3] = {
      "mix_topk: anchor_logits must be float32, bfloat16 or float16",
      "mix_topk: anchor_logits must have 1..2^31-1 columns",
      "mix_topk: anchor_logits must have data and a row stride of 0 or more"};
  static constexpr const char* kTarget[3] = {
      "mix_topk: target_logits must be float32, bfloat16 or float16",
      "mix_topk: target_logits must have 1..2^31-1 columns",
      "mix_topk: target_logits must have data and a row stride of 0 or more"};
  if (const char* error = check_view(p.anchor, kAnchor)) return error;
  if (const char* error = check_view(p.target, kTarget)) return error;
  if (p.anchor.num_rows != p.target.num_rows) {
    return "mix_topk: anchor_logits and target_logits must have the same "
           "number of rows";
  }
  if (p.table == nullptr) return "mix_topk: table must have data";
  if (p.top_b < 1 || p.top_b > p.anchor.num_cols) return "mix_topk: top_b must be in 1..Va";
  if (p.top_b > kMaxTopB) return "mix_topk: top_b must be at most 256";
  if (p.top_k < 1 || p.top_k > kMaxTopK) return "mix_topk: top_k must be in 1..8";
  if (p.mix != Mix::kLinear && p.mix != Mix::kLog) return "mix_topk: unknown mix";
  if (p.support != Support::kAnchor && p.support != Support::kUnion) {
    return "mix_topk: unknown support";
  }
  return nullptr;
}

const char* check_params(const MixParams& p, const MixOutput& out) {
  if (const char* error = check_arguments(p)) return error;
  if (p.anchor.num_rows > 0 &&
      (out.token_ids == nullptr || out.logprobs == nullptr || out.anchor_mass == nullptr ||
       out.translated_mass == nullptr || out.target_mass == nullptr || out.flags == nullptr)) {
    return "mix_topk: outputs must have data";
  }
  return nullptr;
}

}  // namespace alignbeam
