// SPDX-License-Identifier: Apache-2.0
// A row of logits and how it is read: a warp takes pieces of 512 columns, and publishes of each one
// sum of exponentials and the maxima of two groups of 256. The pieces are fixed, so that a row's
// bits depend neither on the grid nor on the other rows.
#pragma once

#include "ops.h"
#include "scalar.h"

namespace alignbeam {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kChunkColumns = 2048;  // rows are padded to it: 8 maxima are 16 bytes
constexpr int kPieceColumns = 512;
constexpr int kPiecesPerChunk = kChunkColumns / kPieceColumns;
constexpr int kGroupColumns = 256;
constexpr int kGroupsPerChunk = kChunkColumns / kGroupColumns;
constexpr int kOctet = 8;               // columns of a group that a lane holds
constexpr int kShortMinusInf = -32641;  // short_key(-inf), the least of a real logit

// What the blocks of a row tell each other. Each word says of itself whether it has been written,
// 0 if not, so that readers need no order among the words: no fence, and no memory that a launch
// must clear first. Whoever has read the words of a row zeroes them for the next launch.
struct Published {
  uint64_t* sums;    // [chunks * kPiecesPerChunk], PartialSums
  uint32_t* maxima;  // the same: two short keys each, the lower group in the lower half

  static __device__ __forceinline__ uint64_t pack(PartialSum part) {
    uint32_t sum = ~static_cast<uint32_t>(float_bits(part.sum));
    if (sum == 0) sum = 0x80000000u;  // of two NaNs, the other one
    return static_cast<uint64_t>(sum) << 32 | static_cast<uint32_t>(float_bits(part.shift));
  }
  static __device__ __forceinline__ bool written(uint64_t word) { return word >> 32 != 0; }
  static __device__ __forceinline__ PartialSum unpack(uint64_t word) {
    return {bits_float(static_cast<uint32_t>(word)),
            bits_float(~static_cast<uint32_t>(word >> 32))};
  }
  // Keys as they are compared; kNoMaxima, below every logit's, where there is nothing.
  static constexpr int kNoMaxima = static_cast<int>(0x80008000u);
  static __device__ __forceinline__ uint32_t pack_maxima(int keys) {
    // A NaN's key may lie below that of -inf, which is here twice.
    constexpr int kLeast = static_cast<int>(0x807f807fu);
    static_assert(kLeast >> 16 == kShortMinusInf);
    return static_cast<uint32_t>(max_s16x2(keys, kLeast)) ^ 0x80008000u;
  }
  static __device__ __forceinline__ int unpack_maxima(int word) { return word ^ kNoMaxima; }
};

struct Row {
  const void* logits;
  int columns;
  DType dtype;
  bool aligned;  // 16-byte loads reach every column

  // As it lies there: asked for long before logit_of makes a number of it and waits.
  __device__ __forceinline__ uint32_t bits(int column) const {
    return dtype == DType::kFloat32 ? static_cast<const uint32_t*>(logits)[column]
                                    : static_cast<const uint16_t*>(logits)[column];
  }
  __device__ __forceinline__ float logit_of(uint32_t bits) const {
    if (dtype == DType::kFloat32) return bits_float(bits);
    return dtype == DType::kBFloat16 ? bits_float(bits << 16)
                                     : half_float(static_cast<uint16_t>(bits));
  }
  __device__ __forceinline__ float logit(int column) const { return logit_of(bits(column)); }
};

// A row and what its readers publish of it.
struct PublishedRow : Row {
  int chunks;
  Published published;
};

__device__ __forceinline__ Row make_row(const RowView& view, int64_t row) {
  const int64_t item = view.dtype == DType::kFloat32 ? 4 : 2;
  const char* logits = static_cast<const char*>(view.data) + row * view.row_stride * item;
  const bool aligned =
      reinterpret_cast<uintptr_t>(logits) % 16 == 0 && view.num_cols * item % 16 == 0;
  return {logits, static_cast<int>(view.num_cols), view.dtype, aligned};
}

// What a lane holds of a group. Loads give `filler` beyond `limit`.
template <DType kType>
struct Octet {
  uint32_t raw[4];

  static __device__ __forceinline__ int column(int lane, int i) { return lane * kOctet + i; }

  template <bool kAligned, bool kStream>
  __device__ __forceinline__ void load(const Row& row, int first, int lane, int limit,
                                       uint16_t filler) {
    const auto* logits = static_cast<const uint16_t*>(row.logits);
    const int begin = first + lane * kOctet;
    if constexpr (kAligned) {
      const int both = static_cast<int>(filler * 0x10001u);
      Int4 four{both, both, both, both};
      if (begin < limit) four = load_logits<kStream>(logits + begin);
      raw[0] = four.x;
      raw[1] = four.y;
      raw[2] = four.z;
      raw[3] = four.w;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t low = begin + 2 * i < limit ? logits[begin + 2 * i] : filler;
        const uint32_t high = begin + 2 * i + 1 < limit ? logits[begin + 2 * i + 1] : filler;
        raw[i] = low | (high << 16);
      }
    }
  }
  template <bool kAligned, bool kStream>
  __device__ __forceinline__ void load_or_minus_inf(const Row& row, int first, int lane,
                                                    int limit) {
    load<kAligned, kStream>(row, first, lane, limit, kType == DType::kBFloat16 ? 0xff80 : 0xfc00);
  }
  template <bool kAligned>
  __device__ __forceinline__ void load_or_nan(const Row& row, int first, int lane) {
    load<kAligned, false>(row, first, lane, row.columns, 0x7fff);
  }
  __device__ __forceinline__ float at(int i) const {
    const uint32_t word = raw[i / 2];
    if (kType == DType::kBFloat16) return bits_float(i % 2 ? word & 0xffff0000u : word << 16);
    return half_float(static_cast<uint16_t>(i % 2 ? word >> 16 : word & 0xffffu));
  }
  static __device__ __forceinline__ uint32_t larger(uint32_t a, uint32_t b) {
    return kType == DType::kBFloat16 ? max_bf16x2(a, b) : max_f16x2(a, b);
  }
  __device__ __forceinline__ float largest() const {
    Octet pair;
    pair.raw[0] = larger(larger(raw[0], raw[1]), larger(raw[2], raw[3]));
    return fmaxf(pair.at(0), pair.at(1));
  }
  // The largest of two octets, each.
  static __device__ __forceinline__ void both_largest(const Octet& a, const Octet& b, float& of_a,
                                                      float& of_b) {
    const uint32_t x = larger(larger(a.raw[0], a.raw[1]), larger(a.raw[2], a.raw[3]));
    const uint32_t y = larger(larger(b.raw[0], b.raw[1]), larger(b.raw[2], b.raw[3]));
    Octet pair;
    pair.raw[0] = larger((x & 0xffffu) | (y << 16), (x >> 16) | (y & 0xffff0000u));
    of_a = pair.at(0);
    of_b = pair.at(1);
  }
};

template <>
struct Octet<DType::kFloat32> {
  float x[kOctet];

  static __device__ __forceinline__ int column(int lane, int i) {
    return i < 4 ? lane * 4 + i : 128 + lane * 4 + i - 4;
  }
  // Unaligned, it holds any type's columns.
  template <bool kAligned, bool kStream>
  __device__ __forceinline__ void load(const Row& row, int first, int lane, int limit,
                                       float filler) {
    const auto* logits = static_cast<const float*>(row.logits);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int begin = first + half * 128 + lane * 4;
      if constexpr (kAligned) {
        const int bits = float_bits(filler);
        Int4 four{bits, bits, bits, bits};
        if (begin < limit) four = load_logits<kStream>(logits + begin);
        x[half * 4] = bits_float(four.x);
        x[half * 4 + 1] = bits_float(four.y);
        x[half * 4 + 2] = bits_float(four.z);
        x[half * 4 + 3] = bits_float(four.w);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          x[half * 4 + i] = begin + i < limit ? row.logit(begin + i) : filler;
        }
      }
    }
  }
  template <bool kAligned, bool kStream>
  __device__ __forceinline__ void load_or_minus_inf(const Row& row, int first, int lane,
                                                    int limit) {
    load<kAligned, kStream>(row, first, lane, limit, -INFINITY);
  }
  template <bool kAligned>
  __device__ __forceinline__ void load_or_nan(const Row& row, int first, int lane) {
    load<kAligned, false>(row, first, lane, row.columns, NAN);
  }
  __device__ __forceinline__ float at(int i) const { return x[i]; }
  __device__ __forceinline__ float largest() const {
    return fmaxf(fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])),
                 fmaxf(fmaxf(x[4], x[5]), fmaxf(x[6], x[7])));
  }
  static __device__ __forceinline__ void both_largest(const Octet& a, const Octet& b, float& of_a,
                                                      float& of_b) {
    of_a = a.largest();
    of_b = b.largest();
  }
};

// Turns a piece's maximum into the shift of its exponentials; 0 where it is no number to subtract.
__device__ __forceinline__ float usable_shift(float largest) {
  return largest > -INFINITY && largest < INFINITY ? largest : 0.0f;
}

// What a piece publishes: see PartialSum.
__device__ __forceinline__ PartialSum close_sum(float largest, float sum) {
  if (largest > -INFINITY && largest < INFINITY) return {largest, sum};
  if (largest == -INFINITY && sum == 0.0f) return {largest, 0.0f};
  return {largest, NAN};
}

// The exponentials of a piece, each one fused multiply-add and one exp2: x * scale - offset is
// (x - shift) * scale + rest, and `rest`, below 64, is the same for all.
struct Exponent {
  float scale, offset, rest;

  __device__ __forceinline__ explicit Exponent(float shift) {
    // From 2^30 on, what differs at all differs by 64 at least: exp2 or exp, either is nothing.
    scale = shift > -1073741824.0f && shift < 1073741824.0f ? kLog2E : 1.0f;
    offset = shift * scale;
    rest = fmaf(shift, scale, -offset);
  }
  __device__ __forceinline__ float operator()(float x) const {
    return exp2_approx(fmaf(x, scale, -offset));
  }
};

// One warp, kPieces neighbouring pieces, those before `end` that is; `place` is the first one's
// among all that are published. The bits of a piece do not
// depend on kPieces: the lanes add as in a butterfly of 16, 8, 4, 2, 1.
template <DType kType, int kPieces>
__device__ __forceinline__ void summarise(const Octet<kType> (&x)[2 * kPieces], int piece, int end,
                                          const Published& to, uint32_t place) {
  static_assert(kPieces == 1 || kPieces == 2);
  const int lane = thread_index() % 32;
  // The lanes share the pieces among themselves as the butterfly below narrows.
  const int mine = kPieces == 2 ? lane / 16 : 0;
  const bool publishes = lane % (32 / kPieces) == 0 && piece + mine < end;
  int largest[kPieces];
  uint32_t keys[kPieces];
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
    float of_low, of_high;
    Octet<kType>::both_largest(x[2 * p], x[2 * p + 1], of_low, of_high);
    const int low = warp_max(order_key(of_low));
    const int high = warp_max(order_key(of_high));
    largest[p] = low > high ? low : high;
    keys[p] = (static_cast<uint32_t>(low) >> 16) | (static_cast<uint32_t>(high) & 0xffff0000u);
  }
  // Before the exponentials: a finisher lists and gathers while they are added up.
  if (publishes) {
    const uint32_t my_keys = mine ? keys[kPieces - 1] : keys[0];
    publish(to.maxima + (place + mine), Published::pack_maxima(static_cast<int>(my_keys)));
  }
  float sum[kPieces];
  float rest[kPieces];
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
    const Exponent exponent(usable_shift(key_to_float(largest[p])));
    float halves[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      halves[h] = exponent(x[2 * p + h].at(0));
#pragma unroll
      for (int i = 1; i < kOctet; ++i) halves[h] += exponent(x[2 * p + h].at(i));
    }
    sum[p] = halves[0] + halves[1];
    rest[p] = exponent.rest;
  }
  float total = sum[0];
  float my_rest = rest[0];
  int my_largest = largest[0];
  if constexpr (kPieces == 2) {
    const float other = mine ? sum[0] : sum[1];
    if (mine) {
      total = sum[1];
      my_rest = rest[1];
      my_largest = largest[1];
    }
    total += shuffle_xor(other, 16);
  } else {
    total += shuffle_xor(total, 16);
  }
#pragma unroll
  for (int step = 8; step > 0; step /= 2) total += shuffle_xor(total, step);
  if (publishes) {
    const PartialSum part = close_sum(key_to_float(my_largest), total * exp2_approx(-my_rest));
    publish(to.sums + (place + mine), Published::pack(part));
  }
}

// One warp, the pieces from `begin` to `end`, published from `place` on.
template <DType kType, bool kAligned>
__device__ __forceinline__ void summarise_run(const Row& row, int begin, int end,
                                              const Published& to, uint32_t place) {
  constexpr int kPieces = kType == DType::kFloat32 ? 1 : 2;
  constexpr int kAtOnce = kAligned ? 2 : 1;  // times kPieces are loaded before the first is used
  const int lane = thread_index() % 32;
  const int limit = end * kPieceColumns < row.columns ? end * kPieceColumns : row.columns;
#pragma unroll 1
  for (; begin < end; begin += kAtOnce * kPieces, place += kAtOnce * kPieces) {
    Octet<kType> x[kAtOnce][2 * kPieces];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int g = 0; g < 2 * kPieces; ++g) {
        x[i][g].template load_or_minus_inf<kAligned, true>(
            row, (begin + i * kPieces) * kPieceColumns + g * kGroupColumns, lane, limit);
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (begin + i * kPieces < end) {
        summarise<kType, kPieces>(x[i], begin + i * kPieces, end, to, place + i * kPieces);
      }
    }
  }
}

__device__ __forceinline__ void read_pieces(const Row& row, int begin, int end, const Published& to,
                                            uint32_t place) {
  if (row.dtype == DType::kBFloat16) {
    row.aligned ? summarise_run<DType::kBFloat16, true>(row, begin, end, to, place)
                : summarise_run<DType::kBFloat16, false>(row, begin, end, to, place);
  } else if (row.dtype == DType::kFloat32) {
    row.aligned ? summarise_run<DType::kFloat32, true>(row, begin, end, to, place)
                : summarise_run<DType::kFloat32, false>(row, begin, end, to, place);
  } else {
    row.aligned ? summarise_run<DType::kFloat16, true>(row, begin, end, to, place)
                : summarise_run<DType::kFloat16, false>(row, begin, end, to, place);
  }
}

}  // namespace
}  // namespace alignbeam
