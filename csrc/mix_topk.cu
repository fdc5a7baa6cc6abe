// SPDX-License-Identifier: Apache-2.0
// The launch of mix_kernel.cuh: one kernel, capturable, no synchronisation with the host.
#include <cuda_runtime.h>

#include "cuda_ops.cuh"
#include "mix_kernel.cuh"
#include "ops.h"

namespace alignbeam {
namespace {

// As many blocks at once on a processor as registers allow without a spill.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kBlocksPerProcessor = 2;
#else
constexpr int kBlocksPerProcessor = 4;
#endif

__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    mix_topk_kernel(const __grid_constant__ MixParams params, const __grid_constant__ MixOutput out,
                    const __grid_constant__ Plan plan) {
  __shared__ Shared shared;
  wait_for_stream();
  mix_topk_block(params, out, plan, shared);
}

int64_t align_up(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// Places a launch's parts in `memory`; returns how many bytes they take.
int64_t place(Plan& plan, int64_t rows, char* memory) {
  const int64_t pieces = rows * (plan.anchor_chunks + plan.target_chunks) * kPiecesPerChunk;
  int64_t bytes = 0;
  const auto take = [&](int64_t size) {
    char* const part = memory + bytes;
    bytes += align_up(size);
    return part;
  };
  plan.published.sums = reinterpret_cast<uint64_t*>(take(pieces * sizeof(uint64_t)));
  plan.published.maxima = reinterpret_cast<uint32_t*>(take(pieces * sizeof(uint32_t)));
  return bytes;
}

struct Device {
  int processors;
  int resident;   // blocks of the kernel at once
  bool overlaps;  // the code that runs here knows wait_for_stream
};

// The current device, asked for once.
cudaError_t current_device(Device* device) {
  constexpr int kDevices = 64;
  static Device known[kDevices];  // zero: not asked yet; two threads write the same
  int index = 0;
  cudaError_t status = cudaGetDevice(&index);
  if (status != cudaSuccess) return status;
  if (index < kDevices && known[index].resident != 0) {
    *device = known[index];
    return cudaSuccess;
  }
  int blocks = 0;
  status = cudaDeviceGetAttribute(&device->processors, cudaDevAttrMultiProcessorCount, index);
  if (status == cudaSuccess) {
    status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, mix_topk_kernel, kThreads, 0);
  }
  // Not the GPU's own version: PTX for an older one runs here too, and does not wait.
  cudaFuncAttributes compiled{};
  if (status == cudaSuccess) status = cudaFuncGetAttributes(&compiled, mix_topk_kernel);
  device->overlaps = compiled.ptxVersion >= 90;
  device->resident = device->processors * blocks;
  if (status == cudaSuccess && index < kDevices) known[index] = *device;
  return status;
}

}  // namespace

CudaDevice::CudaDevice(int index) {
  int current = 0;
  cudaError_t status = cudaGetDevice(&current);
  if (status == cudaSuccess && current != index) {
    status = cudaSetDevice(index);
    if (status == cudaSuccess) before_ = current;
  }
  if (status != cudaSuccess) error_ = cudaGetErrorString(status);
}
CudaDevice::~CudaDevice() {
  if (before_ >= 0) (void)cudaSetDevice(before_);
}

const char* cuda_capture(void* stream, uint64_t* id) {
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  unsigned long long number = 0;
  const cudaError_t status =
      cudaStreamGetCaptureInfo(static_cast<cudaStream_t>(stream), &capturing, &number);
  *id = capturing == cudaStreamCaptureStatusNone ? 0 : number;
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

int64_t mix_topk_cuda_workspace(int64_t rows, int64_t anchor_cols, int64_t target_cols) {
  Plan plan{};
  plan.anchor_chunks = chunks_of(anchor_cols);
  plan.target_chunks = chunks_of(target_cols);
  return place(plan, rows, nullptr);
}

const char* mix_topk_cuda(const MixParams& params, const MixOutput& out, void* workspace,
                          int64_t workspace_bytes, void* stream) {
  if (const char* error = check_params(params, out)) return error;
  const int64_t rows = params.anchor.num_rows;
  if (rows == 0) return nullptr;
  if (const char* error = check_widths(params)) return error;
  Plan plan{};
  plan.anchor_chunks = chunks_of(params.anchor.num_cols);
  plan.target_chunks = chunks_of(params.target.num_cols);
  const int64_t needed = place(plan, rows, static_cast<char*>(workspace));
  if (workspace == nullptr || workspace_bytes < needed) return "mix_topk: workspace is too small";

  Device device{};
  cudaError_t status = current_device(&device);
  if (status != cudaSuccess) return cudaGetErrorString(status);
  if (rows * (plan.anchor_chunks + plan.target_chunks) > INT32_MAX / kPiecesPerChunk) {
    return "mix_topk: too many rows for one launch";
  }
  const bool halves =
      params.anchor.dtype != DType::kFloat32 && params.target.dtype != DType::kFloat32;
  plan.at_once = rows <= 32;
  const int unit = (plan.at_once ? 1 : 2) * (halves ? 2 : 1);  // so many bytes are loaded at once
  lay_out(plan, rows, device.resident, device.processors, unit);
  // Its blocks are brought to their processors while the kernel before it ends.
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(plan.readers + plan.finishers);
  config.blockDim = kThreads;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &overlap;
  config.numAttrs = device.overlaps ? 1 : 0;
  status = cudaLaunchKernelEx(&config, mix_topk_kernel, params, out, plan);
  if (status == cudaSuccess) return nullptr;
  (void)cudaGetLastError();  // said here, and not by whoever asks next
  return cudaGetErrorString(status);
}

}  // namespace alignbeam
