// SPDX-License-Identifier: Apache-2.0
// The few instructions that the kernel is written in, on a GPU. cuda_on_host.h has the same names
// for the host.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace alignbeam {
namespace {

struct alignas(16) Int4 {
  int x, y, z, w;
};

// ---- threads ----

__device__ __forceinline__ int thread_index() { return static_cast<int>(threadIdx.x); }
// Read anew: what is computed from it is not kept in registers from the kernel's start on.
__device__ __forceinline__ int thread_index_anew() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}
__device__ __forceinline__ uint32_t block_index() { return blockIdx.x; }
__device__ __forceinline__ void block_sync() { __syncthreads(); }
__device__ __forceinline__ void warp_sync() { __syncwarp(); }
// Of a launch that may begin while the one before it ends: until that has ended and can be seen.
__device__ __forceinline__ void wait_for_stream() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ int warp_max(int x) { return __reduce_max_sync(0xffffffffu, x); }
__device__ __forceinline__ int warp_min(int x) { return __reduce_min_sync(0xffffffffu, x); }
__device__ __forceinline__ int warp_sum(int x) { return __reduce_add_sync(0xffffffffu, x); }
__device__ __forceinline__ unsigned warp_ballot(bool x) { return __ballot_sync(0xffffffffu, x); }
template <class T>
__device__ __forceinline__ T shuffle_xor(T x, int step) {
  return __shfl_xor_sync(0xffffffffu, x, step);
}
__device__ __forceinline__ int shuffle_up(int x, int step) {
  return __shfl_up_sync(0xffffffffu, x, step);
}
template <class T>
__device__ __forceinline__ T shuffle_from(T x, int lane) {
  return __shfl_sync(0xffffffffu, x, lane);
}

// ---- numbers ----

__device__ __forceinline__ float exp2_approx(float x) {
  float y;  // 2 ulp; -inf gives 0, NaN stays NaN
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ int float_bits(float x) { return __float_as_int(x); }
__device__ __forceinline__ float bits_float(uint32_t x) { return __uint_as_float(x); }
__device__ __forceinline__ float half_float(uint16_t x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}
__device__ __forceinline__ uint32_t max_bf16x2(uint32_t a, uint32_t b) {
  uint32_t y;
  asm("max.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  return y;
}
__device__ __forceinline__ uint32_t max_f16x2(uint32_t a, uint32_t b) {
  uint32_t y;
  asm("max.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  return y;
}
// All ones in each half where a >= b.
__device__ __forceinline__ uint32_t ge_bf16x2(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  uint32_t y;
  asm("set.ge.u32.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  return y;
#else
  const bool low = __uint_as_float(a << 16) >= __uint_as_float(b << 16);
  const bool high = __uint_as_float(a & 0xffff0000u) >= __uint_as_float(b & 0xffff0000u);
  return (low ? 0xffffu : 0u) | (high ? 0xffff0000u : 0u);
#endif
}
__device__ __forceinline__ int max_s16x2(int a, int b) {
  return static_cast<int>(__vmaxs2(static_cast<unsigned>(a), static_cast<unsigned>(b)));
}
__device__ __forceinline__ int count_bits(unsigned x) { return __popc(x); }
__device__ __forceinline__ int count_bits64(uint64_t x) { return __popcll(x); }
__device__ __forceinline__ int high_bit(uint32_t x) { return 31 - __clz(static_cast<int>(x)); }
__device__ __forceinline__ int first_bit64(uint64_t x) {
  return __ffsll(static_cast<long long>(x)) - 1;
}

// ---- shared memory ----

__device__ __forceinline__ void assume_shared(const void* place) {
  __builtin_assume(__isShared(place));
}
__device__ __forceinline__ int atomic_add(int* place, int x) { return atomicAdd(place, x); }
__device__ __forceinline__ void atomic_count(int* place) { atomicAdd(place, 1); }
__device__ __forceinline__ uint32_t atomic_or(uint32_t* place, uint32_t x) {
  return atomicOr(place, x);
}
__device__ __forceinline__ void atomic_min(int* place, int x) { atomicMin(place, x); }
__device__ __forceinline__ void atomic_max(int* place, int x) { atomicMax(place, x); }

// ---- between blocks: through L2, in no order but that of each word (see Published) ----

__device__ __forceinline__ void publish(uint32_t* place, uint32_t word) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(place), "r"(word) : "memory");
}
__device__ __forceinline__ void publish(uint64_t* place, uint64_t word) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(place), "l"(word) : "memory");
}
__device__ __forceinline__ Int4 read_four(const uint32_t* from) {
  Int4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
}
__device__ __forceinline__ void read_two(const uint64_t* from, uint64_t& a, uint64_t& b) {
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
               : "=l"(a), "=l"(b)
               : "l"(from)
               : "memory");
}
__device__ __forceinline__ void store_zeros(void* place) {
  *static_cast<int4*>(place) = make_int4(0, 0, 0, 0);
}
// ---- reading ----

template <bool kStream>
__device__ __forceinline__ Int4 load_logits(const void* from) {
  Int4 v;
  if (kStream) {
    asm volatile("ld.global.nc.L1::no_allocate.v4.s32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
  } else {
    v = *static_cast<const Int4*>(from);
  }
  return v;
}
template <class T>
__device__ __forceinline__ T load_once(const T* from) {
  return __ldg(from);
}
// A load that nobody waits for.
__device__ __forceinline__ void prefetch_l1(const int32_t* from) {
  asm volatile("{\n .reg .b32 unused;\n ld.global.nc.b32 unused, [%0];\n}" ::"l"(from));
}
__device__ __forceinline__ void prefetch_l2(const void* from) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}

}  // namespace
}  // namespace alignbeam
