// SPDX-License-Identifier: Apache-2.0
// The part of DLPack's stable ABI that is used here (dmlc/dlpack, versions 1.x,
// include/dlpack/dlpack.h): what a tensor is, and the C table through which
// torch >= 2.10 hands its tensors over (torch.Tensor.__dlpack_c_exchange_api__)
// in tens of nanoseconds. It takes the place of torch's headers, which would
// tie the extension to one torch build.
#pragma once

#include <cstdint>

namespace alignbeam::dlpack {

enum DeviceType : int32_t { kCpu = 1, kCuda = 2 };
struct Device {
  DeviceType type;
  int32_t id;
};

enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4 };
struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};
inline bool operator==(DataType a, DataType b) {
  return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};

struct Version {
  uint32_t major;
  uint32_t minor;
};

struct ManagedTensor {  // DLManagedTensorVersioned
  Version version;
  void* manager_ctx;
  void (*deleter)(ManagedTensor* self);
  uint64_t flags;
  Tensor tensor;
};

// Functions return 0, or -1 with a Python exception set.
struct ExchangeApi {  // DLPackExchangeAPI
  Version version;
  ExchangeApi* previous;
  int (*allocate)(Tensor* prototype, ManagedTensor** out, void* context,
                  void (*set_error)(void* context, const char* kind, const char* message));
  int (*export_tensor)(void* object, ManagedTensor** out);
  int (*import_tensor)(ManagedTensor* tensor, void** object);  // takes ownership
  int (*view)(void* object, Tensor* out);                      // borrows
  int (*current_stream)(DeviceType device, int32_t id, void** stream);
};

}  // namespace alignbeam::dlpack
