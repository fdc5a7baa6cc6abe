// SPDX-License-Identifier: Apache-2.0
// Compiled with AVX-512 F, BW, DQ and VL; entered only on a CPU that has them.
// Per 32 bf16 columns: one 64-byte load, 2 x (widen, fma, reduce, 4 fma,
// scalef, add), and for the anchor 2 maxima. In the caches that arithmetic is
// the limit, not the loads (the rooflines of bench/bench_mix_topk.py).
#include <immintrin.h>

#include "cpu_vector.h"

namespace alignbeam {
namespace {

struct Simd {
  using V = __m512;
  static V set(float x) { return _mm512_set1_ps(x); }
  static V zero() { return _mm512_setzero_ps(); }
  static V add(V a, V b) { return _mm512_add_ps(a, b); }
  static V max(V a, V b) { return _mm512_max_ps(a, b); }
  static float sum(V v) { return _mm512_reduce_add_ps(v); }
  static float top(V v) { return _mm512_reduce_max_ps(v); }
  static void store(float* out, V v) { _mm512_storeu_ps(out, v); }

  // y = n + r with r in [0, 1): 2^r by the polynomial of least relative error
  // (2.7e-6 in float), times 2^n by scalef, which floors y itself. -inf gives 0
  // and NaN stays NaN without a clamp.
  static V exp2_of(V x, V scale, V offset) {
    const V y = _mm512_fmadd_ps(x, scale, offset);
    const V r = _mm512_reduce_ps(y, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    V p = _mm512_fmadd_ps(set(0x1.bb7cd4p-7f), r, set(0x1.aa13fp-5f));
    p = _mm512_fmadd_ps(p, r, set(0x1.ee798ap-3f));
    p = _mm512_fmadd_ps(p, r, set(0x1.62d166p-1f));
    p = _mm512_fmadd_ps(p, r, set(0x1.00002cp+0f));
    return _mm512_scalef_ps(p, y);
  }
};

struct Float32 {
  using Storage = float;
  static constexpr DType kDType = DType::kFloat32;
  static constexpr float kNegativeInfinity = -INFINITY;
  static constexpr int kParts = 2;
  static constexpr int kPlaces = 3;
  struct Raw {
    __m512 low, high;
  };

  static Raw load(const float* x) { return {_mm512_loadu_ps(x), _mm512_loadu_ps(x + 16)}; }
  static __m512 part(const Raw& raw, int i) { return i == 0 ? raw.low : raw.high; }
  static uint32_t reach(const float* x, __m512 bound) {
    const Raw raw = load(x);
    const uint32_t low = _mm512_cmp_ps_mask(raw.low, bound, _CMP_GE_OQ);
    const uint32_t high = _mm512_cmp_ps_mask(raw.high, bound, _CMP_GE_OQ);
    return low | high << 16;
  }
};

// What the two 16-bit formats share.
template <class Format>
struct Half {
  using Storage = uint16_t;
  static constexpr int kParts = 2;
  static constexpr int kPlaces = 2;
  using Raw = __m512i;

  static Raw load(const uint16_t* x) { return _mm512_loadu_si512(x); }
  static uint32_t reach(const uint16_t* x, __m512 bound) {
    const auto* halves = reinterpret_cast<const __m256i*>(x);
    const __m512 low = Format::widened(_mm256_loadu_si256(halves));
    const __m512 high = Format::widened(_mm256_loadu_si256(halves + 1));
    const uint32_t low_bits = _mm512_cmp_ps_mask(low, bound, _CMP_GE_OQ);
    const uint32_t high_bits = _mm512_cmp_ps_mask(high, bound, _CMP_GE_OQ);
    return low_bits | high_bits << 16;
  }
};

struct BFloat16 : Half<BFloat16> {
  static constexpr DType kDType = DType::kBFloat16;
  static constexpr uint16_t kNegativeInfinity = 0xff80;
  static __m512 widened(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
  }
  // Even and odd columns: a shift and a mask, no shuffle.
  static __m512 part(const __m512i& raw, int i) {
    return _mm512_castsi512_ps(i == 0 ? _mm512_slli_epi32(raw, 16)
                                      : _mm512_and_si512(raw, _mm512_set1_epi32(-65536)));
  }
};

struct Float16 : Half<Float16> {
  static constexpr DType kDType = DType::kFloat16;
  static constexpr uint16_t kNegativeInfinity = 0xfc00;
  static __m512 widened(__m256i x) { return _mm512_cvtph_ps(x); }
  static __m512 part(const __m512i& raw, int i) {
    return widened(i == 0 ? _mm512_castsi512_si256(raw) : _mm512_extracti64x4_epi64(raw, 1));
  }
};

}  // namespace

const ScanKernels& avx512_kernels(DType dtype, Reading reading) {
  return reading == Reading::kOnePlace
             ? vector_kernels<Simd, Float32, BFloat16, Float16, Reading::kOnePlace>(dtype)
             : vector_kernels<Simd, Float32, BFloat16, Float16, Reading::kManyPlaces>(dtype);
}

}  // namespace alignbeam
