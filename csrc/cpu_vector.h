// SPDX-License-Identifier: Apache-2.0
// Reading of logits, over a vector unit's primitives. Included by one
// translation unit per instruction set, each compiled with flags of its own;
// everything has internal linkage, so none of it can be called from a unit
// compiled for another CPU.
//
// A unit provides a `Simd` with V, set, zero, add, max, sum and top (the
// largest lane) of a V, store, and exp2_of(x, scale, offset) = 2^(x * scale +
// offset); and per dtype a `Type` that reads 32 columns (a "chunk") at a time:
//   Storage, kParts                how a logit is stored; float vectors a chunk
//   kPlaces                        how many "many places" are
//   Raw load(const Storage*)       32 logits as they are in memory
//   V part(const Raw&, i)          some of them as floats; the parts cover all,
//                                  in any order
//   uint32_t reach(const Storage*, V)   one bit for each of the 32, in column
//                                  order: logit >= V
#pragma once

#include <cmath>
#include <cstring>

#include "cpu_scan.h"
#include "scalar.h"

namespace alignbeam {
namespace {

constexpr int kChunk = 32;

// A row's last columns, with -inf (probability 0, never the maximum) up to the
// end of the chunk.
template <class Type>
struct PaddedChunk {
  typename Type::Storage logits[kChunk];

  PaddedChunk(const typename Type::Storage* source, int64_t count) {
    for (auto& logit : logits) logit = Type::kNegativeInfinity;
    memcpy(logits, source, count * sizeof logits[0]);
  }
};

template <class Type>
typename Type::Raw load_chunk(const typename Type::Storage* x, int64_t remaining) {
  return remaining >= kChunk ? Type::load(x) : Type::load(PaddedChunk<Type>(x, remaining).logits);
}

// The largest of each of a chunk's positions. NaN is not kept: the sum tells of
// it.
template <class Simd, class Type>
struct Maxima {
  typename Simd::V parts[Type::kParts];

  Maxima() {
    for (auto& part : parts) part = Simd::set(-INFINITY);
  }
  void join(const Maxima& other) {
    for (int i = 0; i < Type::kParts; ++i) parts[i] = Simd::max(parts[i], other.parts[i]);
  }
  float top() const {
    auto largest = parts[0];
    for (int i = 1; i < Type::kParts; ++i) largest = Simd::max(largest, parts[i]);
    return Simd::top(largest);
  }
};

template <class Simd, class Type>
float max_of(const typename Type::Storage* x, int64_t count) {
  Maxima<Simd, Type> maxima;
  for (int64_t i = 0; i < count; i += kChunk) {
    const auto raw = load_chunk<Type>(x + i, count - i);
    for (int j = 0; j < Type::kParts; ++j) {
      maxima.parts[j] = Simd::max(maxima.parts[j], Type::part(raw, j));
    }
  }
  return maxima.top();
}

// A tile's sum of exponentials, lane by lane, and its maxima.
template <class Simd, class Type, bool kWithMaxima>
struct TileSum {
  typename Simd::V sums[Type::kParts];
  Maxima<Simd, Type> maxima;

  TileSum() {
    for (auto& sum : sums) sum = Simd::zero();
  }
  __attribute__((always_inline)) void add(const typename Type::Raw& raw, typename Simd::V scale,
                                          typename Simd::V offset) {
    for (int i = 0; i < Type::kParts; ++i) {
      const auto x = Type::part(raw, i);
      sums[i] = Simd::add(sums[i], Simd::exp2_of(x, scale, offset));
      if constexpr (kWithMaxima) maxima.parts[i] = Simd::max(maxima.parts[i], x);
    }
  }
  typename Simd::V sum() const {
    auto total = sums[0];
    for (int i = 1; i < Type::kParts; ++i) total = Simd::add(total, sums[i]);
    return total;
  }
};

// How far ahead of its loads a scan asks for memory. The exponentials fill a
// core's window before it has issued enough loads to hide what lies behind the
// caches; in the caches, asking costs nothing that shows.
template <Reading kReading>
constexpr int64_t kPrefetchBytes = kReading == Reading::kOnePlace ? 8192 : 2048;

template <Reading kReading, class Storage>
void prefetch_chunk(const Storage* x) {
  const auto* ahead = reinterpret_cast<const char*>(x) + kPrefetchBytes<kReading>;
  for (unsigned b = 0; b < kChunk * sizeof *x; b += 64) __builtin_prefetch(ahead + b);
}

// The sum of exp(x - shift); maxima into `out` where wanted. One read.
template <class Simd, class Type, Reading kReading, bool kWithMaxima>
float sum_of(const typename Type::Storage* x, int64_t count, float shift, BlockScan* out) {
  using Tile = TileSum<Simd, Type, kWithMaxima>;
  const float product = shift * kLog2E;
  const auto scale = Simd::set(kLog2E);
  const auto offset = Simd::set(-product);
  auto block_sum = Simd::zero();
  Maxima<Simd, Type> delegates;
  // Adding tile by tile keeps rounding at that of some 70 additions instead of
  // 1,024.
  const auto close = [&](const Tile& tile, int64_t index) __attribute__((always_inline)) {
    block_sum = Simd::add(block_sum, tile.sum());
    if constexpr (kWithMaxima) {
      out->tile_max[index] = short_key(tile.maxima.top());
      delegates.join(tile.maxima);
    }
  };
  constexpr int kStreams = kReading == Reading::kOnePlace ? 1 : Type::kPlaces;
  const int64_t stride = count / kTile / kStreams;  // in tiles
  for (int64_t i = 0; i < stride; ++i) {
    Tile tiles[kStreams];
    for (int64_t j = i * kTile; j < (i + 1) * kTile; j += kChunk) {
#pragma GCC unroll 4
      for (int k = 0; k < kStreams; ++k) {
        const auto* chunk = x + k * stride * kTile + j;
        prefetch_chunk<kReading>(chunk);
        tiles[k].add(Type::load(chunk), scale, offset);
      }
    }
    for (int k = 0; k < kStreams; ++k) close(tiles[k], k * stride + i);
  }
  int64_t index = kStreams * stride;
  for (int64_t begin = index * kTile; begin < count; begin += kTile, ++index) {
    Tile tile;
    const int64_t end = begin + kTile < count ? begin + kTile : count;
    for (int64_t i = begin; i < end; i += kChunk) {
      tile.add(load_chunk<Type>(x + i, end - i), scale, offset);
    }
    close(tile, index);
  }
  if constexpr (kWithMaxima) {
    for (; index < kTilesPerBlock; ++index) out->tile_max[index] = kNoKey;
    static_assert(kChunk == kDelegates);
    float largest[kDelegates];
    constexpr int kLanes = kDelegates / Type::kParts;
    for (int i = 0; i < Type::kParts; ++i) Simd::store(largest + i * kLanes, delegates.parts[i]);
    for (int i = 0; i < kDelegates; ++i) out->delegates[i] = short_key(largest[i]);
  }
  // x * scale - product is (x - shift) * scale plus what rounding the product
  // lost: the same for every column, so it is taken out of the sum.
  const double lost = static_cast<double>(shift) * kLog2E - product;
  return static_cast<float>(Simd::sum(block_sum) * exp2(-lost));
}

// The shift need not be the maximum, only close enough that no sum overflows.
// That of the first columns almost always is; where it is not, the block is
// read again.
constexpr int64_t kShiftColumns = 256;
// Beyond this, taking out what rounding lost is itself inexact.
constexpr float kLargestShift = 1e6f;

template <class Simd, class Type, Reading kReading, bool kWithMaxima>
void read_block(const void* logits, int64_t count, BlockScan* out) {
  const auto* x = static_cast<const typename Type::Storage*>(logits);
  float shift = max_of<Simd, Type>(x, count < kShiftColumns ? count : kShiftColumns);
  const bool usable = shift >= -kLargestShift && shift <= kLargestShift;
  float sum = sum_of<Simd, Type, kReading, kWithMaxima>(x, count, usable ? shift : 0.0f, out);
  if (!usable || !(sum < INFINITY)) {
    shift = max_of<Simd, Type>(x, count);
    if (shift >= -kLargestShift && shift <= kLargestShift) {
      sum = sum_of<Simd, Type, kReading, false>(x, count, shift, out);
    } else {  // no logit at all, NaN, or logits of a size that no model has
      BlockScan plain;
      scalar_kernels(Type::kDType).sum_block(logits, count, &plain);
      shift = plain.shift;
      sum = plain.sum;
    }
  }
  out->shift = shift;
  out->sum = sum;
}

template <class Simd, class Type>
int collect_columns(const void* logits, int64_t count, int32_t threshold, uint32_t* columns) {
  const auto* x = static_cast<const typename Type::Storage*>(logits);
  const float lowest = -INFINITY;
  // Compared as floats, -0.0 reaches +0.0, as its order key does.
  const auto bound = Simd::set(threshold > order_key(lowest) ? key_to_float(threshold) : lowest);
  int found = 0;
  for (int64_t i = 0; i < count; i += kChunk) {
    uint32_t reached;
    if (count - i >= kChunk) {
      reached = Type::reach(x + i, bound);
    } else {
      const PaddedChunk<Type> rest(x + i, count - i);
      reached = Type::reach(rest.logits, bound) & ((1u << (count - i)) - 1);
    }
    for (; reached != 0; reached &= reached - 1) {
      columns[found++] = static_cast<uint32_t>(i) + __builtin_ctz(reached);
    }
  }
  return found;
}

template <class Simd, class Type, Reading kReading>
constexpr ScanKernels kVectorKernels{read_block<Simd, Type, kReading, true>,
                                     read_block<Simd, Type, kReading, false>,
                                     collect_columns<Simd, Type>};

// The tables of a unit, by dtype.
template <class Simd, class Float32, class BFloat16, class Float16, Reading kReading>
const ScanKernels& vector_kernels(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
      return kVectorKernels<Simd, BFloat16, kReading>;
    case DType::kFloat16:
      return kVectorKernels<Simd, Float16, kReading>;
    default:
      return kVectorKernels<Simd, Float32, kReading>;
  }
}

}  // namespace
}  // namespace alignbeam
