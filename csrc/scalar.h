// SPDX-License-Identifier: Apache-2.0
// Arithmetic of one row, written once for CPU and CUDA: order keys, partial
// sums, the epilogue's formulas. Everything here has internal linkage, so that
// a translation unit compiled for AVX-512 can never lend its code to one that
// runs on an older CPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define ALIGNBEAM_HD __host__ __device__ __forceinline__
#else
#define ALIGNBEAM_HD inline
#endif

namespace alignbeam {
namespace {

constexpr float kLog2E = 1.4426950408889634f;

// Any logit as an integer that sorts as the logit does. Negative floats sort
// backwards as integers, hence the flip of their magnitude bits; -0.0 must tie
// with +0.0.
ALIGNBEAM_HD int32_t order_key(float x) {
  int32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const int32_t key = bits ^ ((bits >> 31) & 0x7fffffff);
  return key == -1 ? 0 : key;
}

ALIGNBEAM_HD float key_to_float(int32_t key) {
  const int32_t bits = key ^ ((key >> 31) & 0x7fffffff);
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// The upper half of an order key: sorts as the logits do, except that
// neighbouring logits of 32 bits may tie.
ALIGNBEAM_HD int16_t short_key(float x) { return static_cast<int16_t>(order_key(x) >> 16); }
// The least order key with that upper half.
ALIGNBEAM_HD int32_t least_key(int16_t short_key) {
  return static_cast<int32_t>(short_key) * 65536;
}

// (logit descending, id ascending) as one number: the larger, the earlier. All
// are distinct.
ALIGNBEAM_HD uint64_t rank_key(int32_t key, uint32_t id) {
  return (static_cast<uint64_t>(static_cast<uint32_t>(key) ^ 0x80000000u) << 32) | ~id;
}
ALIGNBEAM_HD uint32_t rank_id(uint64_t rank) { return ~static_cast<uint32_t>(rank); }
ALIGNBEAM_HD float rank_logit(uint64_t rank) {
  return key_to_float(static_cast<int32_t>(static_cast<uint32_t>(rank >> 32) ^ 0x80000000u));
}

// The sum of exp(x - shift) over a piece of a row, where `shift` is a logit of
// the piece so near to its maximum that the sum is finite. A fully masked piece
// is {-inf, 0}; a sum of NaN or +inf marks a piece with NaN or +inf in it.
struct PartialSum {
  float shift;
  float sum;
};

// log-sum-exp kept as two terms: (x - shift) - log_sum stays exact to 1e-16
// even where all logits share a large offset, which x - (shift + log_sum) would
// round away.
struct LogSum {
  double shift;
  double log_sum;
};

ALIGNBEAM_HD double log_prob(float logit, LogSum total) {
  return (static_cast<double>(logit) - total.shift) - total.log_sum;
}

// `parts` are PartialSums or hold one's fields. In the order of the pieces, so
// that the bits do not depend on who computed which piece.
template <class Part>
ALIGNBEAM_HD LogSum merge_sums(const Part* parts, int64_t count) {
  double shift = -INFINITY;
  for (int64_t i = 0; i < count; ++i) {
    if (parts[i].shift > shift) shift = parts[i].shift;
  }
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    // A fully masked piece adds nothing; exp(-inf - -inf) would make it NaN.
    if (parts[i].sum != 0.0f) sum += parts[i].sum * exp(parts[i].shift - shift);
  }
  return {shift, log(sum)};
}

// False for a row with NaN or +inf, or with nothing but -inf: its probabilities
// do not exist.
ALIGNBEAM_HD bool is_distribution(LogSum total) {
  return total.shift > -INFINITY && total.log_sum > -INFINITY && total.log_sum < INFINITY;
}

ALIGNBEAM_HD double log_add_exp(double a, double b) {
  const double high = a > b ? a : b;
  const double low = a > b ? b : a;
  return low == -INFINITY ? high : high + log(1.0 + exp(low - high));
}

// log f(d) of docs/algorithm.md, section 3, from log a(d) and log q(d).
struct Mixer {
  double alpha;
  double log_alpha;
  double log_rest;
  bool linear;

  ALIGNBEAM_HD Mixer(float alpha_, bool linear_)
      : alpha(alpha_), log_alpha(log(alpha)), log_rest(log(1.0 - alpha)), linear(linear_) {}

  ALIGNBEAM_HD double operator()(double log_a, double log_q) const {
    if (alpha == 0.0) return log_q;
    if (alpha == 1.0) return log_a;
    if (linear) return log_add_exp(log_alpha + log_a, log_rest + log_q);
    return alpha * log_a + (1.0 - alpha) * log_q;
  }
};

ALIGNBEAM_HD float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  uint32_t bits;
  if (magnitude >= 0x7c00u) {  // inf and NaN
    bits = 0x7f800000u | (magnitude << 13);
  } else if (magnitude >= 0x0400u) {
    bits = (magnitude << 13) + ((127u - 15u) << 23);
  } else {  // subnormal halves are normal floats
    const float value = static_cast<float>(magnitude) * 5.9604644775390625e-8f;  // 2^-24
    memcpy(&bits, &value, sizeof bits);
  }
  bits |= sign;
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

ALIGNBEAM_HD float bfloat16_to_float(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

}  // namespace
}  // namespace alignbeam
