// SPDX-License-Identifier: Apache-2.0
// The C++ face of the op's contract (docs/algorithm.md, section 3). No torch,
// no pybind11: tensors cross as RowViews, so that two strides cannot be swapped
// and no particular torch build is needed.
#pragma once

#include <cstdint>

namespace alignbeam {

enum class DType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };
enum class Mix : int32_t { kLinear = 0, kLog = 1 };
enum class Support : int32_t { kAnchor = 0, kUnion = 1 };

// Bits of MixOutput::flags; the same numbers as alignbeam.ops.Flags.
inline constexpr int32_t kEmptySupport = 1;
inline constexpr int32_t kNonFinite = 2;

inline constexpr int kMaxTopB = 256;
inline constexpr int kMaxTopK = 8;

// A matrix of logits, borrowed. row_stride is in elements; columns are
// contiguous.
struct RowView {
  const void* data;
  int64_t num_rows;
  int64_t num_cols;
  int64_t row_stride;
  DType dtype;
};

struct MixParams {
  RowView anchor;        // [R, Va]
  RowView target;        // [R, Vt]
  const int32_t* table;  // [Va], target id or -1
  const float* alpha;    // [R]; nullptr: alpha_scalar for every row
  float alpha_scalar;
  int top_b;
  int top_k;
  Mix mix;
  Support support;
};

struct MixOutput {
  int64_t* token_ids;      // [R, top_k]
  float* logprobs;         // [R, top_k]
  float* anchor_mass;      // [R]
  float* translated_mass;  // [R]
  float* target_mass;      // [R]
  int32_t* flags;          // [R]
};

// nullptr when the parameters can be run, else what is wrong with them, in
// words. Backends call it first: whoever reaches the kernels without the Python
// check still cannot read out of bounds.
const char* check_params(const MixParams& params, const MixOutput& out);
// The same of what comes in, before there are outputs.
const char* check_arguments(const MixParams& params);

// Runs on the calling thread and up to threads - 1 helpers. Results do not
// depend on `threads`. Returns what check_params returns.
const char* mix_topk_cpu(const MixParams& params, const MixOutput& out, int threads);

// The CUDA kernel's steps, run on the host (mix_topk_host.cpp).
const char* mix_topk_host(const MixParams& params, const MixOutput& out);

// Queues one launch on `stream` (a cudaStream_t). `workspace` holds at least
// mix_topk_cuda_workspace bytes, zeroed before its first use, and serves one
// stream at a time. Returns what check_params or the CUDA runtime has to say.
const char* mix_topk_cuda(const MixParams& params, const MixOutput& out, void* workspace,
                          int64_t workspace_bytes, void* stream);
int64_t mix_topk_cuda_workspace(int64_t rows, int64_t anchor_cols, int64_t target_cols);

// The current device for as long as it lives.
class CudaDevice {
 public:
  explicit CudaDevice(int index);
  ~CudaDevice();
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;
  const char* error() const { return error_; }  // nullptr, or the CUDA runtime's words

 private:
  int before_ = -1;  // the device to go back to
  const char* error_ = nullptr;
};
// Which capture `stream` is in; 0 for none. Returns what the CUDA runtime has to
// say.
const char* cuda_capture(void* stream, uint64_t* id);

// The instruction set that mix_topk_cpu uses: "avx512", "avx2" or "scalar".
const char* cpu_isa();
// In how many places of a row it reads at a time: "one" or "many".
const char* cpu_reads();

}  // namespace alignbeam
