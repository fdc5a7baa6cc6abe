// SPDX-License-Identifier: Apache-2.0
// The only pybind11 file: names, the GIL released, tensors to RowViews. A call
// outside the contract gives None, and alignbeam/ops/native.py then says what
// is wrong with it; what is accepted here is at most what alignbeam/ops/spec.py
// accepts.
#include <pybind11/pybind11.h>

#include <map>
#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

#include "ops.h"
#include "torch_tensors.h"

namespace py = pybind11;
using namespace alignbeam;

namespace {

bool read_int(py::handle value, int* out) {
  if (!PyLong_Check(value.ptr()) || PyBool_Check(value.ptr())) return false;
  int overflow = 0;
  const long number = PyLong_AsLongAndOverflow(value.ptr(), &overflow);
  *out = static_cast<int>(number);
  return overflow == 0 && number == *out;
}

// Which of two names `value` is.
template <class Enum>
bool read_choice(py::handle value, const char* first, const char* second, Enum* out) {
  if (!PyUnicode_Check(value.ptr())) return false;
  const bool is_second = PyUnicode_CompareWithASCIIString(value.ptr(), second) == 0;
  *out = static_cast<Enum>(is_second);
  return is_second || PyUnicode_CompareWithASCIIString(value.ptr(), first) == 0;
}

// The arguments of a step, borrowed from Python for as long as the call lasts.
// To be used where `read` has returned true.
struct Step {
  MixParams params{};
  MixOutput out{};
  dlpack::Device device{};
  std::vector<float> alphas;  // those of a CPU tensor with a stride

  bool read(py::handle anchor, py::handle target, py::handle table, py::handle alpha,
            py::handle top_b, py::handle top_k, py::handle mix, py::handle support) {
    dlpack::Device target_device;
    dlpack::Tensor ids;
    return view_rows(anchor.ptr(), &params.anchor, &device) &&
           view_rows(target.ptr(), &params.target, &target_device) && is_here(target_device) &&
           view_tensor(table.ptr(), &ids) && read_table(ids) && read_alpha(alpha) &&
           read_int(top_b, &params.top_b) && read_int(top_k, &params.top_k) &&
           read_choice(mix, "linear", "log", &params.mix) &&
           read_choice(support, "anchor", "union", &params.support) &&
           check_arguments(params) == nullptr;
  }

 private:
  bool is_here(dlpack::Device other) const {
    return other.type == device.type && other.id == device.id;
  }

  bool read_table(const dlpack::Tensor& ids) {
    params.table = static_cast<const int32_t*>(ids.data);
    return ids.dtype == dlpack::DataType{dlpack::kInt, 32, 1} && ids.ndim == 1 &&
           ids.shape[0] == params.anchor.num_cols && (ids.shape[0] == 1 || ids.strides[0] == 1) &&
           is_here(ids.device);
  }

  bool read_alpha(py::handle value) {
    params.alpha = nullptr;
    if (PyFloat_Check(value.ptr()) || (PyLong_Check(value.ptr()) && !PyBool_Check(value.ptr()))) {
      const double number = PyFloat_AsDouble(value.ptr());
      PyErr_Clear();  // of an integer too large for a double, which is out of range too
      params.alpha_scalar = static_cast<float>(number);
      return number >= 0.0 && number <= 1.0;
    }
    dlpack::Tensor t;
    if (!view_tensor(value.ptr(), &t) || !(t.dtype == dlpack::DataType{dlpack::kFloat, 32, 1}) ||
        t.ndim != 1 || t.shape[0] != params.anchor.num_rows || !is_here(t.device)) {
      return false;
    }
    params.alpha = static_cast<const float*>(t.data);
    const int64_t stride = t.shape[0] > 1 ? t.strides[0] : 1;
    // On a GPU nothing is read back: the kernel flags a row whose alpha is out
    // of range.
    if (device.type == dlpack::kCuda) return stride == 1;
    for (int64_t i = 0; i < t.shape[0]; ++i) {
      const float a = params.alpha[i * stride];
      if (!(a >= 0.0f && a <= 1.0f)) return false;
      if (stride != 1) alphas.push_back(a);
    }
    if (stride != 1) params.alpha = alphas.data();
    return true;
  }
};

void raise_if(const char* error) {
  if (error != nullptr) throw std::invalid_argument(error);
}

// Outputs are new unless `out` has them.
template <class Run>
py::object run_on_cpu(Step& step, py::handle out, Run run) {
  if (step.device.type != dlpack::kCpu) return py::none();
  const int64_t rows = step.params.anchor.num_rows;
  py::object result;
  if (out.is_none()) {
    result = py::reinterpret_steal<py::object>(
        new_outputs(rows, step.params.top_k, step.device, &step.out));
    if (!result) throw py::error_already_set();
  } else {
    if (!view_outputs(out.ptr(), rows, step.params.top_k, step.device, &step.out)) {
      return py::none();
    }
    result = py::reinterpret_borrow<py::object>(out);
  }
  if (rows > 0) {
    const char* error;
    {
      py::gil_scoped_release release;
      error = run(step.params, step.out);
    }
    raise_if(error);
  }
  return result;
}

py::object run_cpu(py::handle anchor, py::handle target, py::handle table, py::handle alpha,
                   py::handle top_b, py::handle top_k, py::handle mix, py::handle support,
                   int threads, py::handle out) {
  Step step;
  if (!step.read(anchor, target, table, alpha, top_b, top_k, mix, support)) return py::none();
  return run_on_cpu(step, out, [&](const MixParams& params, const MixOutput& output) {
    return mix_topk_cpu(params, output, threads);
  });
}

py::object run_host(py::handle anchor, py::handle target, py::handle table, py::handle alpha,
                    py::handle top_b, py::handle top_k, py::handle mix, py::handle support) {
  Step step;
  if (!step.read(anchor, target, table, alpha, top_b, top_k, mix, support)) return py::none();
  return run_on_cpu(step, py::none(), mix_topk_host);
}

#if defined(ALIGNBEAM_CUDA_ARCHS)
// Zeroed memory that the kernel leaves zero. One for each stream, whose launches
// follow each other, and one for each graph that is captured from it, whose
// replays may overlap with anything else.
struct Workspace {
  uint64_t capture = 0;  // the capture it belongs to
  void* data = nullptr;
  int64_t bytes = 0;
  py::object tensor;
};

// `make(device, bytes)` gives a new one as a torch tensor.
const Workspace& workspace_of(int device, void* stream, int64_t bytes, py::handle make) {
  using Key = std::tuple<int, void*, bool>;
  static auto& known = *new std::map<Key, Workspace>;  // never freed: Python may be gone by then
  uint64_t capture = 0;
  raise_if(cuda_capture(stream, &capture));
  Workspace& workspace = known[Key{device, stream, capture != 0}];
  if (workspace.capture != capture || workspace.bytes < bytes) {
    py::object tensor = make(device, bytes);
    dlpack::Tensor memory;
    if (!view_tensor(tensor.ptr(), &memory) || memory.device.type != dlpack::kCuda ||
        memory.device.id != device || memory.ndim != 1 || memory.dtype.bits != 8) {
      throw py::type_error("mix_topk: a workspace is a tensor of bytes on the logits' device");
    }
    workspace = {capture, memory.data, memory.shape[0], std::move(tensor)};
  }
  return workspace;
}

// The outputs, once the step is queued; None where the arguments are refused.
py::object run_cuda(py::handle anchor, py::handle target, py::handle table, py::handle alpha,
                    py::handle top_b, py::handle top_k, py::handle mix, py::handle support,
                    py::handle make_workspace) {
  Step step;
  if (!step.read(anchor, target, table, alpha, top_b, top_k, mix, support)) return py::none();
  if (step.device.type != dlpack::kCuda) return py::none();
  const MixParams& params = step.params;
  const int64_t rows = params.anchor.num_rows;
  auto result =
      py::reinterpret_steal<py::object>(new_outputs(rows, params.top_k, step.device, &step.out));
  if (!result) throw py::error_already_set();
  if (rows == 0) return result;
  void* stream = nullptr;
  if (!current_stream(step.device, &stream)) {
    PyErr_Clear();
    throw std::runtime_error("mix_topk: torch does not say which stream is current");
  }
  const int64_t bytes =
      mix_topk_cuda_workspace(rows, params.anchor.num_cols, params.target.num_cols);
  const CudaDevice on(step.device.id);
  raise_if(on.error());
  const Workspace& workspace = workspace_of(step.device.id, stream, bytes, make_workspace);
  raise_if(mix_topk_cuda(params, step.out, workspace.data, workspace.bytes, stream));
  return result;
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of alignbeam; call them through alignbeam.ops.";
  m.def("use_tensor_type", [](py::handle type) {
    if (!use_tensor_type(type.ptr())) throw py::error_already_set();
  });
  m.def("mix_topk_cpu", &run_cpu, py::arg("anchor_logits"), py::arg("target_logits"),
        py::arg("table"), py::arg("alpha"), py::arg("top_b"), py::arg("top_k"), py::arg("mix"),
        py::arg("support"), py::arg("threads"), py::arg("out") = py::none());
  m.def("mix_topk_host", &run_host, py::arg("anchor_logits"), py::arg("target_logits"),
        py::arg("table"), py::arg("alpha"), py::arg("top_b"), py::arg("top_k"), py::arg("mix"),
        py::arg("support"));
#if defined(ALIGNBEAM_CUDA_ARCHS)
  m.def("mix_topk_cuda", &run_cuda, py::arg("anchor_logits"), py::arg("target_logits"),
        py::arg("table"), py::arg("alpha"), py::arg("top_b"), py::arg("top_k"), py::arg("mix"),
        py::arg("support"), py::arg("make_workspace"));
  m.attr("cuda_archs") = ALIGNBEAM_CUDA_ARCHS;
#else
  m.attr("cuda_archs") = "";
#endif
  m.def("cpu_isa", &cpu_isa);
  m.def("cpu_reads", &cpu_reads);
  m.attr("source_key") = ALIGNBEAM_SOURCE_KEY;
}
