// SPDX-License-Identifier: Apache-2.0
// Plain C++ reading of logits: any CPU, and the yardstick of the vector units.
#include <algorithm>
#include <cmath>

#include "cpu_scan.h"
#include "scalar.h"

namespace alignbeam {
namespace {

struct Float32 {
  using Storage = float;
  static float load(const float* p) { return *p; }
};
struct BFloat16 {
  using Storage = uint16_t;
  static float load(const uint16_t* p) { return bfloat16_to_float(*p); }
};
struct Float16 {
  using Storage = uint16_t;
  static float load(const uint16_t* p) { return half_to_float(*p); }
};

template <class Type>
void sum_block(const void* logits, int64_t count, BlockScan* out) {
  const auto* x = static_cast<const typename Type::Storage*>(logits);
  float shift = -INFINITY;
  bool has_nan = false;
  for (int64_t i = 0; i < count; ++i) {
    const float v = Type::load(x + i);
    has_nan |= std::isnan(v);
    shift = v > shift ? v : shift;
  }
  // In double: 16,384 float additions would round away what many small
  // probabilities sum to.
  double sum = 0.0;
  if (has_nan || shift == INFINITY) {
    sum = NAN;
  } else if (shift != -INFINITY) {
    for (int64_t i = 0; i < count; ++i) sum += std::exp(Type::load(x + i) - shift);
  }
  out->shift = shift;
  out->sum = static_cast<float>(sum);
}

template <class Type>
void scan_block(const void* logits, int64_t count, BlockScan* out) {
  const auto* x = static_cast<const typename Type::Storage*>(logits);
  std::fill(out->tile_max, out->tile_max + kTilesPerBlock, kNoKey);
  std::fill(out->delegates, out->delegates + kDelegates, kNoKey);
  for (int64_t i = 0; i < count; ++i) {
    const int16_t key = short_key(Type::load(x + i));
    int16_t& tile = out->tile_max[i / kTile];
    int16_t& delegate = out->delegates[i % kDelegates];
    tile = std::max(tile, key);
    delegate = std::max(delegate, key);
  }
  sum_block<Type>(logits, count, out);
}

template <class Type>
int collect(const void* logits, int64_t count, int32_t threshold, uint32_t* columns) {
  const auto* x = static_cast<const typename Type::Storage*>(logits);
  int found = 0;
  for (int64_t i = 0; i < count; ++i) {
    columns[found] = static_cast<uint32_t>(i);
    found += order_key(Type::load(x + i)) >= threshold;
  }
  return found;
}

template <class Type>
constexpr ScanKernels kKernels{scan_block<Type>, sum_block<Type>, collect<Type>};

}  // namespace

const ScanKernels& scalar_kernels(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
      return kKernels<BFloat16>;
    case DType::kFloat16:
      return kKernels<Float16>;
    default:
      return kKernels<Float32>;
  }
}

}  // namespace alignbeam
