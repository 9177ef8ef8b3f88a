#include <pybind11/stl.h>

#include "backends/registry.h"
#include "bindings/bindings.h"
#include "core/error.h"
#include "core/model_runner.h"

namespace py = pybind11;

namespace trt_moe {

void register_model(py::module_& module) {
  py::class_<ModelRunner, std::shared_ptr<ModelRunner>>(module, "Model", "One model compiled for one device.")
      .def(py::init([](const py::bytes& onnx, const std::string& backend, const std::string& precision,
                       std::size_t threads, const std::string& cache_dir, std::vector<std::size_t> buckets) {
             const std::string bytes = onnx;
             const py::gil_scoped_release release;
             return std::make_shared<ModelRunner>(
                 make_backend(backend)->load(bytes, {precision, threads, cache_dir, std::move(buckets)}));
           }),
           py::arg("onnx"), py::kw_only(), py::arg("backend"), py::arg("precision") = "auto", py::arg("threads") = 0,
           py::arg("cache_dir") = "", py::arg("buckets") = std::vector<std::size_t>{})
      .def(
          "logits",
          [](ModelRunner& self, const py::array& images) {
            const EngineInfo& info = self.engine()->info();
            const ImageBatchView view = image_batch(images, info.input);
            py::array_t<float> logits({view.count, info.outputs});
            float* const rows = logits.mutable_data();
            {
              const py::gil_scoped_release release;
              self.logits(view, rows, &check_signals);
            }
            return logits;
          },
          py::arg("images"), "uint8 [N,H,W,C] images to float32 [N, outputs] logits.")
      .def(
          "time",
          [](ModelRunner& self, const py::array& image, std::size_t iterations, std::size_t warmup) {
            const std::uint8_t* const pixels = single_image(image, self.engine()->info().input);
            py::array_t<double> times(static_cast<py::ssize_t>(iterations));
            double* const values = times.mutable_data();
            {
              const py::gil_scoped_release release;
              self.time(pixels, warmup, {values, iterations}, &check_signals);
            }
            return times;
          },
          py::arg("image"), py::arg("iterations"), py::arg("warmup") = 0,
          "Wall times of single-image inference, float64 [iterations], in milliseconds, by the C++ clock.")
      .def_property_readonly("input_shape",
                             [](const ModelRunner& self) {
                               const ImageShape& shape = self.engine()->info().input;
                               return py::make_tuple(shape.height, shape.width, shape.channels);
                             })
      .def_property_readonly("outputs", [](const ModelRunner& self) { return self.engine()->info().outputs; })
      .def_property_readonly("precision", [](const ModelRunner& self) { return self.engine()->info().precision; })
      .def_property_readonly("device", [](const ModelRunner& self) { return self.engine()->info().device; })
      .def_property_readonly("threads", [](const ModelRunner& self) { return self.engine()->info().parallel; })
      .def_property_readonly("buckets", [](const ModelRunner& self) {
        const auto sizes = self.engine()->info().buckets.sizes();
        return std::vector<std::size_t>(sizes.begin(), sizes.end());
      });
}

}  // namespace trt_moe
