#include <pybind11/stl.h>

#include <chrono>
#include <map>

#include "bindings/bindings.h"
#include "bindings/pipeline.h"
#include "core/error.h"

namespace py = pybind11;

namespace trt_moe {

namespace {

Answers predict_device(Pipeline& self, std::uintptr_t address, std::size_t count, std::uintptr_t stream,
                       const std::optional<cuda::DeviceOutputs::Rows>& keep, const std::optional<CallTimes>& times) {
  AnswerArrays answers(self, count);
  const OutputRows rows = answers.rows();
  const DeviceRows* const kept = kept_rows(keep, count);
  {
    const py::gil_scoped_release release;
    self.predict_there({address, count, self.input().bytes(), stream}, rows, &check_signals, kept, times_or_now(times));
  }
  return answers.take();
}

constexpr const char* kInputBuffer = "trt_moe.input_buffer";

py::array_t<std::uint8_t> input_buffer(const Pipeline& self, std::size_t count) {
  const ImageShape& shape = self.input();
  const std::vector<std::size_t> extents{count, shape.height, shape.width, shape.channels};
  if (count == 0) throw Error(ErrorKind::kInput, "an input buffer of 0 images was asked for; expected at least 1");
  std::unique_ptr<cuda::Buffer> block;
  {
    const py::gil_scoped_release release;
    block = self.input_block(count);
  }
  if (!block) return py::array_t<std::uint8_t>(extents);
  auto* const pixels = reinterpret_cast<std::uint8_t*>(block->host());
  const py::capsule owner(block.get(), kInputBuffer, [](void* held) { delete static_cast<cuda::Buffer*>(held); });
  block.release();
  return py::array_t<std::uint8_t>(extents, pixels, owner);
}

std::map<std::string, std::map<std::string, std::size_t>> memory(const Pipeline& self) {
  std::map<std::string, std::map<std::string, std::size_t>> report;
  for (const auto& [name, use] : self.memory_use()) report[name] = {{"device", use.device}, {"pinned", use.pinned}};
  return report;
}

}  // namespace

bool in_input_buffer(const py::array& images) {
  py::object owner = images;
  while (py::isinstance<py::array>(owner)) owner = owner.attr("base");
  return PyCapsule_IsValid(owner.ptr(), kInputBuffer) != 0;
}

const DeviceRows* kept_rows(const std::optional<cuda::DeviceOutputs::Rows>& keep, std::size_t images) {
  if (!keep) return nullptr;
  if (keep->images == images) return &keep->rows;
  throw Error(ErrorKind::kInput, "there are rows for " + std::to_string(keep->images) + " answers and " +
                                     std::to_string(images) + " images; expected as many");
}

void register_device_rows(py::module_& module) {
  using Rows = cuda::DeviceOutputs::Rows;
  py::class_<Rows>(module, "DeviceRows", "Answers on the device, one row an image; addresses there.")
      .def_property_readonly("probabilities", [](const Rows& self) { return self.rows.probabilities; })
      .def_property_readonly("gater_logits", [](const Rows& self) { return self.rows.gater_logits; })
      .def_property_readonly("routes", [](const Rows& self) { return self.rows.routes; });
}

void register_device_pipeline(PipelineClass& pipeline) {
  pipeline
      .def("predict_device", &predict_device, py::arg("address"), py::arg("count"), py::arg("stream"),
           py::arg("keep") = py::none(), py::arg("times") = py::none(),
           "predict for `count` uint8 [H,W,C] images, densely packed at an address of the models' CUDA device. They "
           "are\n"
           "read after the work that is on `stream` now: a CUDA stream, 1 (the legacy default), 2 (the thread's) or 0\n"
           "(they are complete). A pipeline that routes or verifies on the host copies them there first.")
      .def("device_rows", &Pipeline::device_rows, py::arg("count"), py::call_guard<py::gil_scoped_release>(),
           "Memory on the device for predict's `keep`; used again once it is dropped. float32 probabilities [N,C] and\n"
           "gater logits [N,K], int32 routes [N].")
      .def("input_buffer", &input_buffer, py::arg("count"),
           "A uint8 [count,H,W,C] array; predict of it, or of a part of it, needs no copy on the host where the\n"
           "pipeline routes on the device.")
      .def("memory", &memory, "Bytes on the device and page-locked on the host, by model; its own weights not counted.")
      .def_property_readonly("input_stream", &Pipeline::input_stream,
                             "A CUDA stream for predict_device, to make others' work be waited for; 0 on the CPU.")
      .def_property_readonly(
          "waited_ms",
          [](const Pipeline& self) { return std::chrono::duration<double, std::milli>(self.waited()).count(); },
          "How long all device-routed predicts together have waited for the device; the rest of their time is the\n"
          "host's.")
      .def_property_readonly(
          "plan", [](const Pipeline& self) { return self.routes_on_device() ? "device-routed" : "host-routed"; },
          "How predict routes: \"device-routed\" or \"host-routed\".")
      .def_property_readonly("plan_reason", &Pipeline::plan_reason, "Why.");
}

}  // namespace trt_moe
