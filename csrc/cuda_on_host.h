// SPDX-License-Identifier: Apache-2.0
// The instructions of cuda_ops.cuh on a host: the threads of a block are fibers, which change
// places at every collective, in an order that changes from round to round. A missing barrier shows
// as a wrong result sooner or later, a barrier that not all reach as an abort. For tests: slow, one
// thread, Linux.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "scalar.h"

#define __device__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))

namespace alignbeam {
namespace {

struct alignas(16) Int4 {
  int x, y, z, w;
};

class Fibers {
 public:
  static constexpr int kThreads = 256;
  static constexpr int kWarps = kThreads / 32;

  template <class Body>
  void run(int64_t block, uint32_t seed, Body&& body) {
    block_ = block;
    body_ = [](void* f) { (*static_cast<std::remove_reference_t<Body>*>(f))(); };
    argument_ = &body;
    random_ = seed * 2654435761u + 12345u;
    stacks_.resize(static_cast<size_t>(kThreads) * kStack);
    for (int t = 0; t < kThreads; ++t) fibers_[t] = {};
    block_arrived_ = 0;
    for (auto& warp : warps_) warp = {};
    int order[kThreads];
    for (int t = 0; t < kThreads; ++t) order[t] = t;
    int done = 0;
    // A warp rests for some rounds now and then: warps drift as far apart as barriers let them.
    int rests[kWarps] = {};
    while (done < kThreads) {
      for (int& rest : rests) rest = rest > 0 ? rest - 1 : next() % 32 == 0 ? next() % 256 : 0;
      for (int t = kThreads - 1; t > 0; --t) std::swap(order[t], order[next() % (t + 1)]);
      bool moved = false;
      for (int t : order) {
        Fiber& fiber = fibers_[t];
        if (fiber.done || waits(t)) continue;
        moved = true;
        if (rests[t / 32] > 0) continue;
        current_ = t;
        if (_setjmp(home_) == 0) {
          if (fiber.started) _longjmp(fiber.place, 1);
          fiber.started = true;
          start(t);
        }
        done += fiber.done;
      }
      if (!moved) {
        std::fprintf(stderr, "cuda_on_host: threads wait for each other\n");
        std::abort();
      }
    }
  }

  int thread() const { return current_; }
  int64_t block() const { return block_; }
  bool once_in(uint32_t times) { return next() % times == 0; }

  void block_sync() {
    Fiber& fiber = fibers_[current_];
    const unsigned turn = block_turn_;
    if (++block_arrived_ == kThreads) {
      block_arrived_ = 0;
      ++block_turn_;
    }
    fiber.block_turn = turn + 1;
    fiber.waits_for_block = true;
    yield();
    fiber.waits_for_block = false;
  }

  // Returns the 32 values that the warp's lanes brought.
  const uint64_t* meet(uint64_t value) {
    Fiber& fiber = fibers_[current_];
    Warp& warp = warps_[current_ / 32];
    const unsigned turn = warp.turn;
    uint64_t* const values = warp.values[turn % 2];
    values[current_ % 32] = value;
    if (++warp.arrived == 32) {
      warp.arrived = 0;
      ++warp.turn;
    }
    fiber.warp_turn = turn + 1;
    fiber.waits_for_warp = true;
    yield();
    fiber.waits_for_warp = false;
    return values;
  }

 private:
  static constexpr size_t kStack = 64 * 1024;
  struct Fiber {
    jmp_buf place;
    ucontext_t context;
    bool started, done, waits_for_block, waits_for_warp;
    unsigned block_turn, warp_turn;
  };
  struct Warp {
    uint64_t values[2][32];
    int arrived;
    unsigned turn;
  };

  bool waits(int t) const {
    const Fiber& f = fibers_[t];
    return (f.waits_for_block && static_cast<int>(block_turn_ - f.block_turn) < 0) ||
           (f.waits_for_warp && static_cast<int>(warps_[t / 32].turn - f.warp_turn) < 0);
  }
  uint32_t next() { return random_ = random_ * 1664525u + 1013904223u, random_ >> 8; }
  void yield() {
    if (_setjmp(fibers_[current_].place) == 0) _longjmp(home_, 1);
  }
  void start(int t) {
    Fiber& fiber = fibers_[t];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stacks_.data() + static_cast<size_t>(t) * kStack;
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Fibers::entry), 0);
    setcontext(&fiber.context);
  }
  static void entry();
  void finish() {
    fibers_[current_].done = true;
    _longjmp(home_, 1);
  }

  Fiber fibers_[kThreads];
  Warp warps_[kWarps];
  std::vector<char> stacks_;
  jmp_buf home_;
  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
  int64_t block_ = 0;
  int current_ = 0;
  int block_arrived_ = 0;
  unsigned block_turn_ = 0;
  uint32_t random_ = 0;
};

Fibers fibers;

void Fibers::entry() {
  fibers.body_(fibers.argument_);
  fibers.finish();
}

// Never inlined: a thread's index must be read anew after every change of fibers.
__attribute__((noinline)) int thread_index() { return fibers.thread(); }
inline int thread_index_anew() { return thread_index(); }
__attribute__((noinline)) uint32_t block_index() { return static_cast<uint32_t>(fibers.block()); }
__attribute__((noinline)) void block_sync() { fibers.block_sync(); }

inline void assume_shared(const void*) {}

template <class T>
uint64_t pack(T x) {
  uint64_t bits = 0;
  std::memcpy(&bits, &x, sizeof x);
  return bits;
}
template <class T>
T unpack(uint64_t bits) {
  T x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
__attribute__((noinline)) const uint64_t* meet(uint64_t bits) { return fibers.meet(bits); }
inline void warp_sync() { meet(0); }
template <class T>
T shuffle_xor(T x, int step) {
  const int lane = thread_index() % 32;
  return unpack<T>(meet(pack(x))[lane ^ step]);
}
inline int shuffle_up(int x, int step) {
  const int lane = thread_index() % 32;
  return unpack<int>(meet(pack(x))[lane >= step ? lane - step : lane]);
}
template <class T>
T shuffle_from(T x, int lane) {
  return unpack<T>(meet(pack(x))[lane]);
}
template <class Fold>
int fold_warp(int x, Fold fold) {
  const uint64_t* all = meet(pack(x));
  int y = unpack<int>(all[0]);
  for (int l = 1; l < 32; ++l) y = fold(y, unpack<int>(all[l]));
  return y;
}
inline int warp_max(int x) {
  return fold_warp(x, [](int a, int b) { return std::max(a, b); });
}
inline int warp_min(int x) {
  return fold_warp(x, [](int a, int b) { return std::min(a, b); });
}
inline int warp_sum(int x) {
  return fold_warp(x, [](int a, int b) { return a + b; });
}
inline unsigned warp_ballot(bool x) {
  const uint64_t* all = meet(x);
  unsigned y = 0;
  for (int l = 0; l < 32; ++l) y |= static_cast<unsigned>(all[l] & 1) << l;
  return y;
}

// The GPU's approximations are off by some 2^-22: so are these, the other way each time.
inline float roughly(float x, uint32_t salt) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (!(x > 1e-30f && x < 1e30f)) return x < 1.17549435e-38f && x > 0 ? 0.0f : x;
  bits += static_cast<int>((bits ^ salt) * 2654435761u >> 30) - 2;  // -2 to 1 ulp
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline float exp2_approx(float x) { return x == 0.0f ? 1.0f : roughly(std::exp2(x), 1); }
inline float log2_approx(float x) {
  return x == 1.0f ? 0.0f : std::log2(x) + (x > 1.3f ? 1.0f : -1.0f) * 1.2e-7f;
}
inline int float_bits(float x) { return unpack<int>(pack(x)); }
inline float bits_float(uint32_t x) { return unpack<float>(x); }
inline float half_float(uint16_t x) { return half_to_float(x); }
inline uint32_t max_bf16x2(uint32_t a, uint32_t b) {
  const float low = std::fmax(bits_float(a << 16), bits_float(b << 16));
  const float high = std::fmax(bits_float(a & 0xffff0000u), bits_float(b & 0xffff0000u));
  return (static_cast<uint32_t>(float_bits(low)) >> 16) |
         (static_cast<uint32_t>(float_bits(high)) & 0xffff0000u);
}
inline uint16_t max_half(uint16_t a, uint16_t b) {
  const float x = half_to_float(a), y = half_to_float(b);
  return std::isnan(x) ? b : std::isnan(y) ? a : x > y ? a : b;
}
inline uint32_t max_f16x2(uint32_t a, uint32_t b) {
  return max_half(a & 0xffffu, b & 0xffffu) |
         (static_cast<uint32_t>(max_half(a >> 16, b >> 16)) << 16);
}
inline uint32_t ge_bf16x2(uint32_t a, uint32_t b) {
  return (bits_float(a << 16) >= bits_float(b << 16) ? 0xffffu : 0u) |
         (bits_float(a & 0xffff0000u) >= bits_float(b & 0xffff0000u) ? 0xffff0000u : 0u);
}
inline int max_s16x2(int a, int b) {
  const int low = std::max(static_cast<int16_t>(a & 0xffff), static_cast<int16_t>(b & 0xffff));
  const int high = std::max(a >> 16, b >> 16);
  return static_cast<int>((static_cast<uint32_t>(high) << 16) |
                          (static_cast<uint32_t>(low) & 0xffffu));
}
inline int count_bits(unsigned x) { return __builtin_popcount(x); }
inline int count_bits64(uint64_t x) { return __builtin_popcountll(x); }
inline int high_bit(uint32_t x) { return 31 - __builtin_clz(x); }
inline int first_bit64(uint64_t x) { return __builtin_ctzll(x); }
inline int atomic_add(int* place, int x) { return (*place += x) - x; }
inline void atomic_count(int* place) { ++*place; }
inline uint32_t atomic_or(uint32_t* place, uint32_t x) {
  const uint32_t old = *place;
  *place |= x;
  return old;
}
inline void atomic_min(int* place, int x) { *place = std::min(*place, x); }
inline void atomic_max(int* place, int x) { *place = std::max(*place, x); }

template <bool kStream>
Int4 load_logits(const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) std::abort();
  Int4 v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// Between blocks. A block here runs to its end before the next one: what it waits for has come, but
// is said to be on its way now and then.
template <class T>
T on_its_way(T word) {
  return fibers.once_in(256) ? T{0} : word;
}
template <class T>
void publish(T* place, T word) {
  if (word == 0) std::abort();  // would read as not written
  *place = word;
}
inline Int4 read_four(const uint32_t* from) {
  const Int4 v = load_logits<false>(from);
  return {on_its_way(v.x), on_its_way(v.y), on_its_way(v.z), on_its_way(v.w)};
}
inline void read_two(const uint64_t* from, uint64_t& a, uint64_t& b) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) std::abort();
  a = on_its_way(from[0]);
  b = on_its_way(from[1]);
}
inline void store_zeros(void* place) {
  if (reinterpret_cast<uintptr_t>(place) % 16 != 0) std::abort();
  std::memset(place, 0, 16);
}
template <class T>
T load_once(const T* from) {
  return *from;
}
inline void prefetch_l1(const void* from) { (void)*static_cast<const volatile char*>(from); }
inline void prefetch_l2(const void* from) { (void)*static_cast<const volatile char*>(from); }

}  // namespace
}  // namespace alignbeam
