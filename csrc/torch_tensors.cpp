// SPDX-License-Identifier: Apache-2.0
#include "torch_tensors.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace alignbeam {
namespace {

PyObject* tensor_type = nullptr;
const dlpack::ExchangeApi* api = nullptr;
PyObject* requires_grad = nullptr;  // the attribute's name

constexpr dlpack::DataType kFloat32{dlpack::kFloat, 32, 1};
constexpr dlpack::DataType kFloat16{dlpack::kFloat, 16, 1};
constexpr dlpack::DataType kBFloat16{dlpack::kBfloat, 16, 1};
constexpr dlpack::DataType kInt32{dlpack::kInt, 32, 1};
constexpr dlpack::DataType kInt64{dlpack::kInt, 64, 1};

// One output: its place in the block, and its shape.
struct Part {
  dlpack::DataType dtype;
  int32_t ndim;
};
constexpr Part kParts[] = {{kInt64, 2},   {kFloat32, 2}, {kFloat32, 1},
                           {kFloat32, 1}, {kFloat32, 1}, {kInt32, 1}};
constexpr int kPartCount = sizeof kParts / sizeof kParts[0];
constexpr int64_t kAlignment = 64;

// All outputs of a call lie in one piece of memory, freed with the last tensor of it.
struct Block {
  std::atomic<int> tensors{kPartCount};
  dlpack::ManagedTensor* memory = nullptr;  // torch's; null where it follows the block
  struct Output {
    dlpack::ManagedTensor managed;
    int64_t shape[2];
    int64_t strides[2];
  } outputs[kPartCount];

  static void release(dlpack::ManagedTensor* tensor) {
    auto* block = static_cast<Block*>(tensor->manager_ctx);
    if (block->tensors.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      block->free();
    }
  }
  void free() {
    if (memory != nullptr && memory->deleter != nullptr) memory->deleter(memory);
    this->~Block();
    std::free(this);
  }
};

void set_error(void*, const char* kind, const char* message) {
  PyErr_Format(PyExc_RuntimeError, "%s: %s", kind, message);
}

// Memory of torch's own allocator; null with an exception set where there is none.
dlpack::ManagedTensor* allocate(int64_t bytes, dlpack::Device device) {
  int64_t shape[1] = {bytes};
  int64_t strides[1] = {1};
  dlpack::Tensor like{nullptr, device, 1, {dlpack::kUInt, 8, 1}, shape, strides, 0};
  dlpack::ManagedTensor* memory = nullptr;
  if (api->allocate == nullptr) {
    PyErr_SetString(PyExc_RuntimeError, "torch's DLPack table allocates nothing");
  } else if (api->allocate(&like, &memory, nullptr, &set_error) != 0) {
    if (!PyErr_Occurred()) PyErr_NoMemory();
    memory = nullptr;
  }
  return memory;
}

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

void point_to(MixOutput* out, void* const (&data)[kPartCount]) {
  *out = {.token_ids = static_cast<int64_t*>(data[0]),
          .logprobs = static_cast<float*>(data[1]),
          .anchor_mass = static_cast<float*>(data[2]),
          .translated_mass = static_cast<float*>(data[3]),
          .target_mass = static_cast<float*>(data[4]),
          .flags = static_cast<int32_t*>(data[5])};
}

}  // namespace

bool use_tensor_type(PyObject* type) {
  PyObject* capsule = PyObject_GetAttrString(type, "__dlpack_c_exchange_api__");
  if (capsule == nullptr) return false;
  auto* table =
      static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
  Py_DECREF(capsule);  // torch keeps the table for the life of the process
  while (table != nullptr && table->version.major > 1) table = table->previous;
  if (table == nullptr || table->version.major != 1 || table->view == nullptr) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, "torch offers no DLPack 1.x");
    return false;
  }
  if (requires_grad == nullptr) requires_grad = PyUnicode_InternFromString("requires_grad");
  Py_INCREF(type);
  Py_XSETREF(tensor_type, type);
  api = table;
  return requires_grad != nullptr;
}

bool view_tensor(PyObject* object, dlpack::Tensor* out) {
  if (tensor_type == nullptr) return false;
  if (!PyObject_TypeCheck(object, reinterpret_cast<PyTypeObject*>(tensor_type))) return false;
  PyObject* grad = PyObject_GetAttr(object, requires_grad);
  const bool plain = grad == Py_False;
  Py_XDECREF(grad);
  if (!plain || api->view(object, out) != 0) {
    PyErr_Clear();  // the caller of the extension says what is wrong
    return false;
  }
  out->data = static_cast<char*>(out->data) + out->byte_offset;
  return true;
}

bool view_rows(PyObject* object, RowView* out, dlpack::Device* device) {
  dlpack::Tensor t;
  if (!view_tensor(object, &t) || t.ndim != 2) return false;
  if (t.dtype == kFloat32) {
    out->dtype = DType::kFloat32;
  } else if (t.dtype == kBFloat16) {
    out->dtype = DType::kBFloat16;
  } else if (t.dtype == kFloat16) {
    out->dtype = DType::kFloat16;
  } else {
    return false;
  }
  // The stride of an axis of size 1 is meaningless, whatever torch says it is.
  if (t.shape[1] < 1 || t.shape[1] > INT32_MAX || (t.shape[1] > 1 && t.strides[1] != 1)) {
    return false;
  }
  out->data = t.data;
  out->num_rows = t.shape[0];
  out->num_cols = t.shape[1];
  out->row_stride = t.shape[0] > 1 ? t.strides[0] : t.shape[1];
  *device = t.device;
  return true;
}

PyObject* new_outputs(int64_t rows, int top_k, dlpack::Device device, MixOutput* out) {
  int64_t offsets[kPartCount];
  int64_t bytes = 0;
  for (int i = 0; i < kPartCount; ++i) {
    offsets[i] = bytes;
    const int64_t count = kParts[i].ndim == 2 ? rows * top_k : rows;
    bytes += aligned(count * kParts[i].dtype.bits / 8);
  }
  PyObject* tuple = PyTuple_New(kPartCount);
  if (tuple == nullptr) return nullptr;
  const bool here = device.type == dlpack::kCpu;
  void* place = std::aligned_alloc(kAlignment, aligned(sizeof(Block)) + (here ? bytes : 0));
  if (place == nullptr) {
    Py_DECREF(tuple);
    return PyErr_NoMemory();
  }
  auto* block = new (place) Block;
  char* memory = static_cast<char*>(place) + aligned(sizeof(Block));
  if (!here) {
    block->memory = allocate(bytes, device);
    if (block->memory == nullptr) {
      block->free();
      Py_DECREF(tuple);
      return nullptr;
    }
    const dlpack::Tensor& t = block->memory->tensor;
    memory = static_cast<char*>(t.data) + t.byte_offset;
  }
  void* data[kPartCount];
  for (int i = 0; i < kPartCount; ++i) {
    Block::Output& o = block->outputs[i];
    const Part& part = kParts[i];
    data[i] = memory + offsets[i];
    o.shape[0] = rows;
    o.shape[1] = top_k;
    o.strides[0] = part.ndim == 2 ? top_k : 1;
    o.strides[1] = 1;
    o.managed = {{1, 0},
                 block,
                 &Block::release,
                 0,
                 {data[i], device, part.ndim, part.dtype, o.shape, o.strides, 0}};
    void* object = nullptr;
    if (api->import_tensor(&o.managed, &object) != 0) {
      // Whether torch took this one before it failed cannot be known: the block
      // stays allocated, which is better than memory freed twice.
      Py_DECREF(tuple);
      return nullptr;
    }
    PyTuple_SET_ITEM(tuple, i, static_cast<PyObject*>(object));
  }
  point_to(out, data);
  return tuple;
}

bool current_stream(dlpack::Device device, void** stream) {
  return api->current_stream != nullptr && api->current_stream(device.type, device.id, stream) == 0;
}

bool view_outputs(PyObject* tuple, int64_t rows, int top_k, dlpack::Device device, MixOutput* out) {
  if (!PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) != kPartCount) return false;
  void* data[kPartCount];
  for (int i = 0; i < kPartCount; ++i) {
    dlpack::Tensor t;
    if (!view_tensor(PyTuple_GET_ITEM(tuple, i), &t)) return false;
    const bool matrix = kParts[i].ndim == 2;
    if (!(t.dtype == kParts[i].dtype) || t.ndim != kParts[i].ndim || t.shape[0] != rows ||
        t.device.type != device.type || t.device.id != device.id) {
      return false;
    }
    if (matrix && (t.shape[1] != top_k || (top_k > 1 && t.strides[1] != 1))) return false;
    if (rows > 1 && t.strides[0] != (matrix ? top_k : 1)) return false;
    data[i] = t.data;
  }
  point_to(out, data);
  return true;
}

}  // namespace alignbeam
