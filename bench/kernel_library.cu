// SPDX-License-Identifier: Apache-2.0
// The CUDA step of one csrc as a library for kernel_library.py, which gives its folder to nvcc:
// with ALIGNBEAM_MARKS for phases.py, without for compare_kernels.py.
#include "check_params.cpp"
#include "mix_topk.cu"

using namespace alignbeam;

extern "C" {

int64_t workspace_bytes(int64_t rows, int64_t anchor_columns, int64_t target_columns) {
  return mix_topk_cuda_workspace(rows, anchor_columns, target_columns);
}

// One step of contiguous logits, B = 50, K = 3. `out` holds 52 bytes a row: ids, log-probabilities,
// three masses, flags. nullptr, or what went wrong.
const char* step(const void* anchor, const void* target, const int32_t* table, int64_t rows,
                 int64_t anchor_columns, int64_t target_columns, int dtype, char* out,
                 void* workspace, int64_t bytes, void* stream) {
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
  return mix_topk_cuda(params, output, workspace, bytes, stream);
}

#if defined(ALIGNBEAM_MARKS)
int mark_count() { return kMarks; }
int most_rows() { return kMarkedRows; }
int most_blocks() { return kMarkedBlocks; }

void forget_marks() {
  static long long zeros[kMarkedBlocks][2];
  cudaMemcpyToSymbol(block_marks, zeros, sizeof zeros);
}

// The marks of the last step, once it has ended: [most_rows][mark_count] and [most_blocks][2].
const char* read_marks(long long* row_times, long long* block_times) {
  cudaDeviceSynchronize();
  cudaMemcpyFromSymbol(row_times, row_marks, sizeof row_marks);
  cudaMemcpyFromSymbol(block_times, block_marks, sizeof block_marks);
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}
#endif

}  // extern "C"
