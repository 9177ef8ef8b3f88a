#include "bindings/bindings.h"
#include "core/error.h"

namespace py = pybind11;

namespace trt_moe {

namespace {

const char* class_name(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kInput: return "InputError";
    case ErrorKind::kQueueFull: return "QueueFullError";
    case ErrorKind::kDeadline: return "DeadlineError";
    case ErrorKind::kRouterClosed: return "RouterClosedError";
    case ErrorKind::kDevice:
    case ErrorKind::kDeviceLost: return "DeviceError";
    case ErrorKind::kEngineBuild: return "EngineBuildError";
    case ErrorKind::kModelOutput: return "ModelOutputError";
  }
  return "TrtMoeError";
}

py::object python_class(ErrorKind kind) { return py::module_::import("trt_moe.errors").attr(class_name(kind)); }

}  // namespace

void register_errors(py::module_&) {
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const Error& e) {
      PyErr_SetString(python_class(e.kind()).ptr(), e.what());
    }
  });
}

void check_signals() {
  const py::gil_scoped_acquire acquire;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

py::object python_error(const Failure& failure) { return python_class(failure.kind)(failure.message); }

}  // namespace trt_moe
