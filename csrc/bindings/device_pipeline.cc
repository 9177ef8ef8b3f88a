#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <map>

#include "bindings/bindings.h"
#include "bindings/pipeline.h"
#include "core/error.h"

namespace py = pybind11;

namespace trt_moe {

namespace {

void predict_on_host(Pipeline& self, const DeviceImages& images, const OutputRows& rows, const DeviceRows* kept) {
  for (std::size_t begin = 0; begin < images.count; begin += self.device_input->capacity()) {
    const std::size_t count = std::min(self.device_input->capacity(), images.count - begin);
    const cuda::DeviceInput::OnHost there(*self.device_input, images.part(begin, count));
    self.predict(there.view(), rows.part(begin, self.classes(), self.experts()), &check_signals, kept);
  }
}

Answers predict_device(Pipeline& self, std::uintptr_t address, std::size_t count, std::uintptr_t stream,
                       const std::optional<cuda::DeviceOutputs::Rows>& keep) {
  if (!self.device_input || address == 0 || count == 0) {
    throw Error(ErrorKind::kInput, "found " + std::to_string(count) + " images at device address " +
                                       std::to_string(address) + (self.device_input ? "" : " for models on the CPU") +
                                       "; expected at least one, on the models' CUDA device");
  }
  const DeviceImages images{address, count, self.input().bytes(), stream};
  AnswerArrays answers(self, count);
  const OutputRows rows = answers.rows();
  const DeviceRows* const kept = kept_rows(keep, count);
  {
    const py::gil_scoped_release release;
    self.device_input->expect_on_device(images);
    if (self.images_stay_on_device()) {
      self.predict(images, rows, &check_signals, kept);
    } else {
      predict_on_host(self, images, rows, kept);
    }
  }
  return answers.take();
}

cuda::DeviceOutputs::Rows device_rows(const Pipeline& self, std::size_t count) {
  if (!self.device_outputs || count == 0) {
    throw Error(ErrorKind::kInput, "rows for " + std::to_string(count) + " answers were asked for" +
                                       (self.device_outputs ? "" : " of models on the CPU") +
                                       "; expected at least one, on the models' CUDA device");
  }
  return self.device_outputs->take(count);
}

constexpr const char* kInputBuffer = "trt_moe.input_buffer";

py::array_t<std::uint8_t> input_buffer(const Pipeline& self, std::size_t count) {
  const ImageShape& shape = self.input();
  const std::vector<std::size_t> extents{count, shape.height, shape.width, shape.channels};
  if (count == 0) throw Error(ErrorKind::kInput, "an input buffer of 0 images was asked for; expected at least 1");
  if (!self.routing.plan) return py::array_t<std::uint8_t>(extents);
  auto block = cuda::allocate_for(*self.captured.front()->device(), "an input buffer", cuda::MemoryKind::kPinned,
                                  count * shape.bytes());
  auto* const pixels = reinterpret_cast<std::uint8_t*>(block->host());
  const py::capsule owner(block.get(), kInputBuffer, [](void* held) { delete static_cast<cuda::Buffer*>(held); });
  block.release();
  return py::array_t<std::uint8_t>(extents, pixels, owner);
}

std::map<std::string, std::map<std::string, std::size_t>> memory(const Pipeline& self) {
  std::map<std::string, std::map<std::string, std::size_t>> report;
  const auto add = [&](const std::string& name, const cuda::MemoryUse& use) {
    report[name] = {{"device", use.device}, {"pinned", use.pinned}};
  };
  for (const auto& model : self.captured) add(model->name(), model->memory_use());
  if (self.device_input) add("images for the host", self.device_input->memory_use());
  if (self.device_outputs) add("answers on the device", self.device_outputs->memory_use());
  if (self.routing.plan) add("device-routed plan", self.routing.plan->memory_use());
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

void choose_routing(Pipeline& pipeline, const std::shared_ptr<Engine>& gater,
                    const std::vector<std::shared_ptr<Engine>>& experts, bool device_routed, bool speculate) {
  std::vector<std::shared_ptr<Engine>> models{gater};
  models.insert(models.end(), experts.begin(), experts.end());
  for (const auto& model : models) {
    if (auto captured = std::dynamic_pointer_cast<cuda::GraphEngine>(model)) pipeline.captured.push_back(captured);
  }
  if (!pipeline.captured.empty()) {
    const auto& device = pipeline.captured.front()->device();
    pipeline.device_input = std::make_unique<cuda::DeviceInput>(device, pipeline.input().bytes(), pipeline.max_batch());
    pipeline.device_outputs = std::make_unique<cuda::DeviceOutputs>(device, pipeline.experts(), pipeline.classes());
  }
  if (!device_routed) {
    pipeline.routing.reason =
        pipeline.captured.empty() ? "the models run on the CPU" : "device routing was not asked for";
    return;
  }
  pipeline.routing = cuda::choose_routing(gater, experts, speculate);
  if (pipeline.routing.plan) pipeline.use(pipeline.routing.plan);
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
           py::arg("keep") = py::none(),
           "predict for `count` uint8 [H,W,C] images, densely packed at an address of the models' CUDA device. They "
           "are\n"
           "read after the work that is on `stream` now: a CUDA stream, 1 (the legacy default), 2 (the thread's) or 0\n"
           "(they are complete). A pipeline that routes or verifies on the host copies them there first.")
      .def("device_rows", &device_rows, py::arg("count"), py::call_guard<py::gil_scoped_release>(),
           "Memory on the device for predict's `keep`; used again once it is dropped. float32 probabilities [N,C] and\n"
           "gater logits [N,K], int32 routes [N].")
      .def("input_buffer", &input_buffer, py::arg("count"),
           "A uint8 [count,H,W,C] array; predict of it, or of a part of it, needs no copy on the host where the\n"
           "pipeline routes on the device.")
      .def("memory", &memory, "Bytes on the device and page-locked on the host, by model; its own weights not counted.")
      .def_property_readonly(
          "input_stream", [](const Pipeline& self) { return self.device_input ? self.device_input->stream() : 0; },
          "A CUDA stream for predict_device, to make others' work be waited for; 0 on the CPU.")
      .def_property_readonly(
          "waited_ms",
          [](const Pipeline& self) {
            const auto plan = self.routing.plan;
            return plan ? std::chrono::duration<double, std::milli>(plan->waited()).count() : 0.0;
          },
          "How long all device-routed predicts together have waited for the device; the rest of their time is the\n"
          "host's.")
      .def_property_readonly(
          "plan", [](const Pipeline& self) { return self.routes_on_device() ? "device-routed" : "host-routed"; },
          "How predict routes: \"device-routed\" or \"host-routed\".")
      .def_property_readonly(
          "plan_reason", [](const Pipeline& self) -> std::string { return self.routing.reason; }, "Why.");
}

}  // namespace trt_moe
