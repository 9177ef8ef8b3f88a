#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <array>
#include <utility>

#include "backends/cuda/model_capture.h"
#include "backends/cuda/plan/versions.h"
#include "backends/cuda/stream_device.h"
#include "backends/registry.h"
#include "bindings/bindings.h"
#include "core/model_runner.h"

namespace py = pybind11;

namespace trt_moe {

namespace {

const char* text(cuda::Conditionals conditionals) {
  switch (conditionals) {
    case cuda::Conditionals::kNone: return "none";
    case cuda::Conditionals::kIf: return "if";
    case cuda::Conditionals::kSwitch: return "switch";
  }
  return "none";
}

py::typing::Dict<py::str, py::object> info(const cuda::StreamDevice& device) {
  const cuda::DeviceInfo& found = device.info();
  py::typing::Dict<py::str, py::object> out;
  out["name"] = found.name;
  out["compute_capability"] = std::to_string(found.compute_major) + "." + std::to_string(found.compute_minor);
  out["driver"] = cuda::version_text(found.driver_version);
  out["runtime"] = cuda::version_text(found.runtime_version);
  out["memory"] = found.memory;
  out["integrated"] = found.integrated;
  out["conditionals"] = text(found.conditionals);
  return out;
}

// Keeps a Python object; the last to let go may be any thread, with the GIL or without.
std::shared_ptr<void> kept(py::object owner) {
  return {owner.release().ptr(), [](void* object) {
            if (!Py_IsInitialized()) return;
            const py::gil_scoped_acquire acquire;
            Py_DECREF(static_cast<PyObject*>(object));
          }};
}

void register_capture(py::module_& module) {
  using cuda::ModelCapture;
  py::class_<ModelCapture, std::shared_ptr<ModelCapture>>(
      module, "CudaCapture",
      "Makes a Model of work that another runtime enqueues on `stream`, once for each bucket, reading\n"
      "uint8 [bucket,H,W,C] at input_address and writing float32 [bucket,outputs] at output_address.")
      .def(py::init([](std::shared_ptr<cuda::StreamDevice> device, const std::array<std::size_t, 3>& input_shape,
                       std::size_t outputs, std::vector<std::size_t> buckets, std::string precision, std::string name) {
             const py::gil_scoped_release release;
             const std::array<std::size_t, 3>& shape = input_shape;
             cuda::CaptureSpec spec{
                 std::move(name), {shape[0], shape[1], shape[2]}, outputs, std::move(buckets), std::move(precision)};
             return std::shared_ptr<ModelCapture>(new ModelCapture(std::move(device), std::move(spec)),
                                                  [](ModelCapture* capture) {
                                                    // It waits for its stream.
                                                    const py::gil_scoped_release waiting;
                                                    delete capture;
                                                  });
           }),
           py::arg("device"), py::kw_only(), py::arg("input_shape"), py::arg("outputs"), py::arg("buckets"),
           py::arg("precision"), py::arg("name"))
      .def_property_readonly("stream", &ModelCapture::stream, "A CUDA stream, as an integer.")
      .def_property_readonly("input_address", [](const ModelCapture& self) { return self.memory().input(); })
      .def_property_readonly("output_address", [](const ModelCapture& self) { return self.memory().output(); })
      .def_property_readonly("buckets", [](const ModelCapture& self) { return self.spec().buckets; })
      .def_property_readonly("outputs", [](const ModelCapture& self) { return self.spec().outputs; })
      .def_property_readonly("input_shape",
                             [](const ModelCapture& self) {
                               const ImageShape& shape = self.spec().input;
                               return py::make_tuple(shape.height, shape.width, shape.channels);
                             })
      .def("reserve_activation", &ModelCapture::reserve_activation, py::arg("bytes"),
           py::call_guard<py::gil_scoped_release>(),
           "Device memory for what happens between input and output, shared by all buckets; its address. Once only.")
      .def(
          "hold_gater",
          [](ModelCapture& self, const py::array_t<float, py::array::c_style>& weights,
             const std::array<std::size_t, 2>& side, bool third) {
            cuda::GaterNet net;
            net.rows = side[0];
            net.columns = side[1];
            net.third = third;
            const std::span<const float> view{weights.data(), static_cast<std::size_t>(weights.size())};
            const py::gil_scoped_release release;
            self.hold_gater(net, view);
          },
          py::arg("weights").noconvert(), py::kw_only(), py::arg("side"), py::arg("third"),
          "Puts the core's own kernels of a gater in the place of the activation memory.\n\n"
          "weights: float32, as trt_moe.cuda.gater_source packs them. side: rows and columns that images are resized\n"
          "to. third: whether it has a third Fire block.")
      .def("enqueue_gater", &ModelCapture::enqueue_gater, py::arg("bucket"), py::call_guard<py::gil_scoped_release>(),
           "Enqueues these kernels on the stream, for the first `bucket` images.")
      .def("begin", &ModelCapture::begin, py::arg("bucket"), py::call_guard<py::gil_scoped_release>(),
           "What is enqueued on the stream now is captured, not run.")
      .def("end", &ModelCapture::end, py::call_guard<py::gil_scoped_release>(),
           "Ends the capture: how many nodes of each kind it has.")
      .def("discard", &ModelCapture::discard, py::call_guard<py::gil_scoped_release>(),
           "Ends a capture that went wrong and forgets it; harmless when none was begun.")
      .def("synchronize", &ModelCapture::synchronize, py::call_guard<py::gil_scoped_release>(),
           "Waits for what is on the stream.")
      .def(
          "finish",
          [](ModelCapture& self, py::object owner) {
            std::shared_ptr<void> keep = kept(std::move(owner));
            const py::gil_scoped_release release;
            return std::make_shared<ModelRunner>(self.finish(std::move(keep)));
          },
          py::arg("owner") = py::none(),
          "The model, once every bucket is captured; nothing else may be called afterwards. owner: what the captured\n"
          "work needs, such as TensorRT's engine and contexts; it lives as long as the model.");
}

}  // namespace

void register_cuda(py::module_& module) {
  module.def("cuda_built", [] { return !cuda_build().empty(); }, "Whether this build has the CUDA backend.");
  module.def("cuda_build", &cuda_build,
             "Toolkit and GPU architectures of the CUDA backend; empty when it was not built.");
  module.def(
      "cuda_compute_capability",
      [](int ordinal) {
        const py::gil_scoped_release release;
        return cuda_compute_capability(ordinal);
      },
      py::arg("ordinal"), "\"9.0\", of a GPU on which no context is left. DeviceError where there is none: why.");
  py::class_<cuda::StreamDevice, std::shared_ptr<cuda::StreamDevice>>(module, "CudaDevice", "One NVIDIA GPU.")
      .def(py::init([](int ordinal) {
             const py::gil_scoped_release release;
             return open_cuda_device(ordinal);
           }),
           py::arg("ordinal") = 0)
      .def_property_readonly("usable", &cuda::StreamDevice::usable,
                             "False after an error that leaves the device unusable for this process.")
      .def_property_readonly(
          "info", &info,
          "name, compute_capability \"9.0\", driver and runtime (CUDA versions), memory in bytes, integrated,\n"
          "conditionals \"switch\", \"if\" or \"none\".");
  register_capture(module);
}

}  // namespace trt_moe
