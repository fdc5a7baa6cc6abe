// SPDX-License-Identifier: Apache-2.0
// A row's sums and the arithmetic of its slots: float64 where digits could cancel, float32 inside
// exp and log.
#pragma once

#include "row.cuh"

namespace alignbeam {
namespace {

__device__ __forceinline__ float exp_of(double x) {
  return exp2_approx(static_cast<float>(x * 1.4426950408889634));
}

// To 2e-7, absolute.
__device__ __forceinline__ double log_of(float x) {
  if (!(x > 0.0f && x < INFINITY)) return x == 0.0f ? -INFINITY : static_cast<double>(x);
  const int bits = float_bits(x);
  const float mantissa = bits_float((bits & 0x007fffff) | 0x3f800000);
  return 0.6931471805599453 *
         (static_cast<double>((bits >> 23) - 127) + static_cast<double>(log2_approx(mantissa)));
}

__device__ __forceinline__ double log_add(double a, double b) {
  const double high = a > b ? a : b;
  const double low = a > b ? b : a;
  if (low == -INFINITY) return high;
  return high + 0.6931471805599453 * static_cast<double>(log2_approx(1.0f + exp_of(low - high)));
}

// log f(d) of docs/algorithm.md, section 3, from log a(d) and log q(d).
struct RowMixer {
  double alpha;
  bool linear;

  __device__ __forceinline__ RowMixer(float alpha_, bool linear_)
      : alpha(alpha_), linear(linear_) {}

  // Not kept: the usual row needs neither.
  __device__ __forceinline__ double log_alpha() const { return log_of(static_cast<float>(alpha)); }
  __device__ __forceinline__ double log_rest() const {
    return log_of(static_cast<float>(1.0 - alpha));
  }

  __device__ __forceinline__ bool valid() const { return alpha >= 0.0 && alpha <= 1.0; }
  __device__ __forceinline__ double operator()(double log_a, double log_q) const {
    if (alpha == 0.0) return log_q;
    if (alpha == 1.0) return log_a;
    if (linear) return log_add(log_alpha() + log_a, log_rest() + log_q);
    return alpha * log_a + (1.0 - alpha) * log_q;
  }
};

__device__ __forceinline__ LogSum log_sum_of(PartialSum total) {
  return {static_cast<double>(total.shift), log_of(total.sum)};
}

// One warp takes and merges the sums of a row, waiting for those that are still on their way.
__device__ __forceinline__ PartialSum merge_pieces(const PublishedRow& row) {
  constexpr int kBatch = 5;  // times 64 pieces: 163,840 columns at once
  const int lane = thread_index() % 32;
  const int pairs = row.chunks * (kPiecesPerChunk / 2);
  float shift = -INFINITY;
  float sum = 0.0f;
  for (int begin = 0; begin < pairs; begin += 32 * kBatch) {
    uint64_t words[2 * kBatch];
    bool missing;
    do {
      missing = false;
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int at = begin + i * 32 + lane;
        words[2 * i] = words[2 * i + 1] = Published::pack({-INFINITY, 0.0f});
        if (at < pairs) read_two(row.published.sums + 2 * at, words[2 * i], words[2 * i + 1]);
        missing |= !Published::written(words[2 * i]) || !Published::written(words[2 * i + 1]);
      }
    } while (warp_ballot(missing) != 0);
    float largest = shift;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {  // for the next launch
      const int at = begin + i * 32 + lane;
      if (at < pairs) store_zeros(row.published.sums + 2 * at);
    }
#pragma unroll
    for (int i = 0; i < 2 * kBatch; ++i) {
      largest = fmaxf(largest, Published::unpack(words[i]).shift);
    }
    // A fully masked piece adds nothing; exp(-inf - -inf) would make it NaN.
    if (sum != 0.0f) sum *= exp2_approx((shift - largest) * kLog2E);
#pragma unroll
    for (int i = 0; i < 2 * kBatch; ++i) {
      const PartialSum part = Published::unpack(words[i]);
      if (part.sum != 0.0f) sum += part.sum * exp2_approx((part.shift - largest) * kLog2E);
    }
    shift = largest;
  }
  const float largest = key_to_float(warp_max(order_key(shift)));
  if (sum != 0.0f) sum *= exp2_approx((shift - largest) * kLog2E);
  double total = sum;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) total += shuffle_xor(total, step);
  return {largest, static_cast<float>(total)};
}

}  // namespace
}  // namespace alignbeam
