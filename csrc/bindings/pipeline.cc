#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <utility>

#include "bindings/bindings.h"
#include "core/model_runner.h"
#include "core/scheduler.h"

namespace py = pybind11;

namespace trt_moe {

namespace {

// Called without the GIL while a caller waits, so that Ctrl-C reaches Python.
void check_signals() {
  const py::gil_scoped_acquire acquire;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

using Answers =
    py::typing::Tuple<py::array_t<float>, py::array_t<float>, py::array_t<std::int64_t>, py::array_t<float>>;
using Completed = py::typing::Tuple<py::int_, py::object, py::array_t<float>, py::array_t<float>, py::int_, py::float_>;

Answers predict(Scheduler& self, const py::array& images) {
  const ImageBatchView view = image_batch(images, self.input());
  py::array_t<float> probabilities({view.count, self.classes()});
  py::array_t<float> gater_logits({view.count, self.experts()});
  py::array_t<std::int64_t> routes(static_cast<py::ssize_t>(view.count));
  py::array_t<float> latency_ms(static_cast<py::ssize_t>(view.count));
  const OutputRows rows{probabilities.mutable_data(), gater_logits.mutable_data(), routes.mutable_data(),
                        latency_ms.mutable_data()};
  {
    const py::gil_scoped_release release;
    self.predict(view, rows, &check_signals);
  }
  return py::make_tuple(std::move(probabilities), std::move(gater_logits), std::move(routes), std::move(latency_ms));
}

py::array_t<float> copy_row(const std::vector<float>& row) {
  return py::array_t<float>(static_cast<py::ssize_t>(row.size()), row.data());
}

py::typing::List<Completed> take_completed(Scheduler& self) {
  std::vector<SubmittedRequest*> done;
  {
    const py::gil_scoped_release release;
    self.take_completed(done);
  }
  py::typing::List<Completed> answers;
  for (SubmittedRequest* request : done) {
    const std::optional<Failure> failure = request->failure();
    answers.append(py::make_tuple(request->ticket(), failure ? python_error(*failure) : py::object(py::none()),
                                  copy_row(request->probabilities()), copy_row(request->gater_logits()),
                                  request->route(), request->latency_ms()));
    self.recycle(request);
  }
  return answers;
}

py::dict stage_dict(const HistogramSnapshot& stage) {
  py::dict out;
  out["count"] = stage.count;
  out["mean_ms"] = stage.mean_ns() * 1e-6;
  for (const auto& [name, q] : {std::pair{"p50_ms", 0.5}, {"p90_ms", 0.9}, {"p99_ms", 0.99}, {"p99_9_ms", 0.999}}) {
    out[name] = stage.quantile_ns(q) * 1e-6;
  }
  out["max_ms"] = static_cast<double>(stage.max_ns) * 1e-6;
  return out;
}

py::typing::Dict<py::str, py::object> stats(const Scheduler& self) {
  const SchedulerStats stats = self.stats();
  py::dict stages;
  for (std::size_t stage = 0; stage < kStageNames.size(); ++stage) {
    stages[py::str(std::string(kStageNames[stage]))] = stage_dict(stats.stages[stage]);
  }
  py::typing::Dict<py::str, py::object> out;
  out["stages"] = stages;
  out["images"] = stats.images;
  out["batches"] = stats.batches;
  out["in_flight"] = stats.in_flight;
  return out;
}

}  // namespace

void register_pipeline(py::module_& module) {
  py::class_<Scheduler>(module, "Pipeline", "A gater and its experts behind one scheduler.")
      .def(
          py::init([](const std::shared_ptr<ModelRunner>& gater,
                      const std::vector<std::shared_ptr<ModelRunner>>& experts, const std::vector<std::string>& names,
                      const std::vector<float>& costs, float latency_weight, std::size_t max_batch,
                      std::int64_t max_wait_us, std::size_t max_queue, bool warmup) {
            std::vector<Expert> list;
            for (std::size_t i = 0; i < experts.size(); ++i) {
              list.push_back({names.at(i), experts[i]->engine(), costs.at(i)});
            }
            const py::gil_scoped_release release;
            return std::make_unique<Scheduler>(
                gater->engine(), std::move(list),
                SchedulerOptions{latency_weight, max_batch, std::chrono::microseconds(max_wait_us), max_queue, warmup});
          }),
          py::arg("gater"), py::arg("experts"), py::kw_only(), py::arg("names"), py::arg("costs"),
          py::arg("latency_weight"), py::arg("max_batch"), py::arg("max_wait_us"), py::arg("max_queue"),
          py::arg("warmup"))
      .def("predict", &predict, py::arg("images"),
           "(probabilities float32 [N,C], gater logits float32 [N,K], routes int64 [N], latency_ms float32 [N]).")
      .def(
          "submit",
          [](Scheduler& self, std::uint64_t ticket, const py::array& image) {
            const std::uint8_t* const pixels = single_image(image, self.input());
            const py::gil_scoped_release release;
            self.submit(ticket, pixels);
          },
          py::arg("ticket"), py::arg("image"))
      .def("take_completed", &take_completed,
           "Blocks for finished submissions: [(ticket, error or None, probabilities, gater logits, route, "
           "latency_ms)];\n"
           "an empty list means closed and drained.")
      .def_property("latency_weight", &Scheduler::latency_weight, &Scheduler::set_latency_weight)
      .def("stats", &stats)
      .def("close", &Scheduler::close, py::arg("cancel_pending"), py::call_guard<py::gil_scoped_release>());
}

}  // namespace trt_moe
