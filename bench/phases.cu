// SPDX-License-Identifier: Apache-2.0
// The CUDA step with its marks, as a library for phases.py.
#define ALIGNBEAM_MARKS
#include "../csrc/check_params.cpp"
#include "../csrc/mix_topk.cu"

using namespace alignbeam;

extern "C" {

int mark_count() { return kMarks; }
int most_rows() { return kMarkedRows; }
int most_blocks() { return kMarkedBlocks; }
int64_t workspace_bytes(int64_t rows, int64_t anchor_columns, int64_t target_columns) {
  return mix_topk_cuda_workspace(rows, anchor_columns, target_columns);
}

// One step of contiguous logits, B = 50, K = 3. `out` holds 64 bytes a row. The marks come back in
// [most_rows][mark_count] and [most_blocks][2]; nullptr, or what went wrong.
const char* marked_step(const void* anchor, const void* target, const int32_t* table, int64_t rows,
                        int64_t anchor_columns, int64_t target_columns, int dtype, char* out,
                        void* workspace, int64_t bytes, long long* row_times,
                        long long* block_times) {
  MixParams params{};
  params.anchor = {anchor, rows, anchor_columns, anchor_columns, static_cast<DType>(dtype)};
  params.target = {target, rows, target_columns, target_columns, static_cast<DType>(dtype)};
  params.table = table;
  params.alpha_scalar = 0.5f;
  params.top_b = 50;
  params.top_k = 3;
  auto* const ids = reinterpret_cast<int64_t*>(out);
  auto* const numbers = reinterpret_cast<float*>(ids + 3 * rows);
  const MixOutput output{ids,
                         numbers,
                         numbers + 3 * rows,
                         numbers + 4 * rows,
                         numbers + 5 * rows,
                         reinterpret_cast<int32_t*>(numbers + 6 * rows)};
  static long long zeros[kMarkedBlocks][2];
  cudaMemcpyToSymbol(block_marks, zeros, sizeof zeros);
  cudaDeviceSynchronize();
  if (const char* error = mix_topk_cuda(params, output, workspace, bytes, nullptr)) return error;
  cudaDeviceSynchronize();
  cudaMemcpyFromSymbol(row_times, row_marks, sizeof row_marks);
  cudaMemcpyFromSymbol(block_times, block_marks, sizeof block_marks);
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // extern "C"
