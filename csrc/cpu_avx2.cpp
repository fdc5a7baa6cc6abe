// SPDX-License-Identifier: Apache-2.0
// Compiled with AVX2, FMA and F16C; entered only on a CPU that has them.
#include <immintrin.h>

#include "cpu_vector.h"

namespace alignbeam {
namespace {

struct Simd {
  using V = __m256;
  static V set(float x) { return _mm256_set1_ps(x); }
  static V zero() { return _mm256_setzero_ps(); }
  static V add(V a, V b) { return _mm256_add_ps(a, b); }
  static V max(V a, V b) { return _mm256_max_ps(a, b); }
  static void store(float* out, V v) { _mm256_storeu_ps(out, v); }
  static float sum(V v) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
  }
  static float top(V v) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
  }

  // y = n + r with n the nearest integer, left in the low bits of y + 1.5 *
  // 2^23: 2^r by the polynomial of least relative error (2.7e-6 in float), 2^n
  // added to its exponent. The clamps keep that exponent in range: below,
  // 2^-126 stands for 0; above, 2^128 is +inf, which the caller sees. min and
  // max return their second operand where it is NaN.
  static V exp2_of(V x, V scale, V offset) {
    V y = _mm256_fmadd_ps(x, scale, offset);
    y = _mm256_min_ps(set(128.0f), _mm256_max_ps(set(-126.0f), y));
    const V shifted = add(y, set(12582912.0f));
    const V r = _mm256_sub_ps(y, _mm256_sub_ps(shifted, set(12582912.0f)));
    V p = _mm256_fmadd_ps(set(0x1.3997d6p-7f), r, set(0x1.ca144p-5f));
    p = _mm256_fmadd_ps(p, r, set(0x1.ec06dap-3f));
    p = _mm256_fmadd_ps(p, r, set(0x1.62e0dcp-1f));
    p = _mm256_fmadd_ps(p, r, set(1.0f));
    const __m256i n = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), n));
  }
};

uint32_t reaches(__m256 x, __m256 bound) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(x, bound, _CMP_GE_OQ)));
}

struct Float32 {
  using Storage = float;
  static constexpr DType kDType = DType::kFloat32;
  static constexpr float kNegativeInfinity = -INFINITY;
  static constexpr int kParts = 4;
  static constexpr int kPlaces = 3;
  struct Raw {
    __m256 part[4];
  };

  static Raw load(const float* x) {
    return {{_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8), _mm256_loadu_ps(x + 16),
             _mm256_loadu_ps(x + 24)}};
  }
  static __m256 part(const Raw& raw, int i) { return raw.part[i]; }
  static uint32_t reach(const float* x, __m256 bound) {
    uint32_t bits = 0;
    for (int i = 0; i < 4; ++i) bits |= reaches(_mm256_loadu_ps(x + 8 * i), bound) << (8 * i);
    return bits;
  }
};

// What the two 16-bit formats share.
template <class Format>
struct Half {
  using Storage = uint16_t;
  static constexpr int kParts = 4;
  static constexpr int kPlaces = 2;
  struct Raw {
    __m256i low, high;
  };

  static __m256i load_half(const uint16_t* x) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  }
  static Raw load(const uint16_t* x) { return {load_half(x), load_half(x + 16)}; }
  static uint32_t reach(const uint16_t* x, __m256 bound) {
    uint32_t bits = 0;
    for (int i = 0; i < 4; ++i) {
      const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + 8 * i));
      bits |= reaches(Format::widened(eight), bound) << (8 * i);
    }
    return bits;
  }
};

struct BFloat16 : Half<BFloat16> {
  static constexpr DType kDType = DType::kBFloat16;
  static constexpr uint16_t kNegativeInfinity = 0xff80;
  static __m256 widened(__m128i x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
  }
  // Even and odd columns: a shift and a mask, no shuffle.
  static __m256 part(const Raw& raw, int i) {
    const __m256i half = i < 2 ? raw.low : raw.high;
    return _mm256_castsi256_ps(i % 2 == 0 ? _mm256_slli_epi32(half, 16)
                                          : _mm256_and_si256(half, _mm256_set1_epi32(-65536)));
  }
};

struct Float16 : Half<Float16> {
  static constexpr DType kDType = DType::kFloat16;
  static constexpr uint16_t kNegativeInfinity = 0xfc00;
  static __m256 widened(__m128i x) { return _mm256_cvtph_ps(x); }
  static __m256 part(const Raw& raw, int i) {
    const __m256i half = i < 2 ? raw.low : raw.high;
    return widened(i % 2 == 0 ? _mm256_castsi256_si128(half) : _mm256_extracti128_si256(half, 1));
  }
};

}  // namespace

const ScanKernels& avx2_kernels(DType dtype, Reading reading) {
  return reading == Reading::kOnePlace
             ? vector_kernels<Simd, Float32, BFloat16, Float16, Reading::kOnePlace>(dtype)
             : vector_kernels<Simd, Float32, BFloat16, Float16, Reading::kManyPlaces>(dtype);
}

}  // namespace alignbeam
