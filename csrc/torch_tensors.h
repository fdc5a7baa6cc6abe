// SPDX-License-Identifier: Apache-2.0
// Torch tensors in and out of the extension, through DLPack's exchange table.
// CPython's API alone; the GIL is held in every function.
#pragma once

#include <Python.h>

#include "dlpack.h"
#include "ops.h"

namespace alignbeam {

// Learns torch.Tensor and its exchange table; false with a Python exception set
// where it has none.
bool use_tensor_type(PyObject* tensor_type);

// Borrows what `object` holds. False, without an exception, unless it is a
// torch.Tensor that has data and requires no grad.
bool view_tensor(PyObject* object, dlpack::Tensor* out);

// Views `object` as logits [R, V]: of a dtype of DType, 1 <= V < 2^31, last
// dimension contiguous.
bool view_rows(PyObject* object, RowView* out, dlpack::Device* device);

// New tensors of one piece of memory, on a GPU torch's own: (token_ids,
// logprobs, anchor_mass, translated_mass, target_mass, flags), as MixResult has
// them. nullptr with a Python exception set.
PyObject* new_outputs(int64_t rows, int top_k, dlpack::Device device, MixOutput* out);

// The stream that torch queues on. False where torch does not say.
bool current_stream(dlpack::Device device, void** stream);

// The same six as views of what Python made; false if one is not as it should
// be.
bool view_outputs(PyObject* tuple, int64_t rows, int top_k, dlpack::Device device, MixOutput* out);

}  // namespace alignbeam
