#include "bindings/pipeline.h"

#include <pybind11/stl.h>

#include <utility>

#include "bindings/bindings.h"
#include "core/model_runner.h"

namespace py = pybind11;

namespace trt_moe {

namespace {

using Completed = py::typing::Tuple<py::int_, py::object, py::array_t<float>, py::array_t<float>, py::int_, py::float_>;

Answers predict(Pipeline& self, const py::array& images, const std::optional<cuda::DeviceOutputs::Rows>& keep,
                const std::optional<CallTimes>& times) {
  ImageBatchView view = image_batch(images, self.input());
  view.page_locked = self.routes_on_device() && in_input_buffer(images);
  const DeviceRows* const kept = kept_rows(keep, view.count);
  AnswerArrays answers(self, view.count);
  const OutputRows rows = answers.rows();
  {
    const py::gil_scoped_release release;
    self.predict(view, rows, &check_signals, kept, times_or_now(times));
  }
  return answers.take();
}

py::array_t<float> copy_row(const std::vector<float>& row) {
  return py::array_t<float>(static_cast<py::ssize_t>(row.size()), row.data());
}

py::typing::List<Completed> take_completed(Pipeline& self) {
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

SchedulerStats stats_of(const Pipeline& self) {
  const py::gil_scoped_release release;  // all workers' histograms are added up
  return self.stats();
}

py::typing::Dict<py::str, py::object> stats(const Pipeline& self) {
  const SchedulerStats stats = stats_of(self);
  py::dict stages;
  for (std::size_t stage = 0; stage < kStageNames.size(); ++stage) {
    stages[py::str(std::string(kStageNames[stage]))] = stage_dict(stats.stages[stage]);
  }
  py::typing::Dict<py::str, py::object> out;
  out["stages"] = stages;
  out["images"] = stats.images;
  out["passed_on"] = stats.passed_on;
  out["batches"] = stats.batches;
  out["moved"] = stats.moved;
  out["missed"] = stats.missed;
  out["in_flight"] = stats.in_flight;
  return out;
}

using Counted = py::typing::Tuple<py::typing::List<py::int_>, py::int_, py::float_>;

py::typing::Dict<py::str, Counted> latencies(const Pipeline& self, const std::vector<std::uint64_t>& limits_ns) {
  const SchedulerStats stats = stats_of(self);
  py::typing::Dict<py::str, Counted> out;
  for (std::size_t stage = 0; stage < kStageNames.size(); ++stage) {
    const HistogramSnapshot& all = stats.stages[stage];
    py::list within;
    for (const std::uint64_t limit : limits_ns) within.append(all.at_most(limit));
    out[py::str(std::string(kStageNames[stage]))] =
        py::make_tuple(within, all.count, static_cast<double>(all.sum_ns) * 1e-6);
  }
  return out;
}

}  // namespace

AnswerArrays::AnswerArrays(const Scheduler& scheduler, std::size_t images)
    : probabilities({images, scheduler.classes()}),
      gater_logits({images, scheduler.experts()}),
      routes(static_cast<py::ssize_t>(images)),
      latency_ms(static_cast<py::ssize_t>(images)) {}

OutputRows AnswerArrays::rows() {
  return {probabilities.mutable_data(), gater_logits.mutable_data(), routes.mutable_data(), latency_ms.mutable_data()};
}

Answers AnswerArrays::take() {
  return py::make_tuple(std::move(probabilities), std::move(gater_logits), std::move(routes), std::move(latency_ms));
}

void register_pipeline(py::module_& module) {
  register_device_rows(module);
  PipelineClass pipeline(module, "Pipeline", "A gater and its experts behind one scheduler.");
  pipeline
      .def(py::init([](const std::shared_ptr<ModelRunner>& gater,
                       const std::vector<std::shared_ptr<ModelRunner>>& experts, const std::vector<std::string>& names,
                       const std::vector<float>& costs, float latency_weight, float verify_below, bool verify_by_mirror,
                       std::size_t max_batch, std::int64_t max_wait_us, std::size_t max_queue, bool warmup,
                       bool device_routed, bool speculate) {
             std::vector<Expert> list;
             for (std::size_t i = 0; i < experts.size(); ++i) {
               list.push_back({names.at(i), experts[i]->engine(), costs.at(i)});
             }
             const SchedulerOptions options{latency_weight,
                                            verify_below,
                                            verify_by_mirror ? VerifyBy::kMirror : VerifyBy::kDearest,
                                            max_batch,
                                            std::chrono::microseconds(max_wait_us),
                                            max_queue,
                                            warmup,
                                            speculate};
             const py::gil_scoped_release release;
             return PipelineHolder(new Pipeline(gater->engine(), list, options, device_routed));
           }),
           py::arg("gater"), py::arg("experts"), py::kw_only(), py::arg("names"), py::arg("costs"),
           py::arg("latency_weight"), py::arg("verify_below"), py::arg("verify_by_mirror"), py::arg("max_batch"),
           py::arg("max_wait_us"), py::arg("max_queue"), py::arg("warmup"), py::arg("device_routed") = false,
           py::arg("speculate") = false)
      .def("predict", &predict, py::arg("images"), py::arg("keep") = py::none(), py::arg("times") = py::none(),
           "(probabilities float32 [N,C], gater logits float32 [N,K], routes int64 [N], latency_ms float32 [N]). "
           "`keep`:\n"
           "device_rows(N), which get the answers too.")
      .def(
          "submit",
          [](Pipeline& self, std::uint64_t ticket, const py::array& image, const std::optional<CallTimes>& times) {
            const std::uint8_t* const pixels = single_image(image, self.input());
            const py::gil_scoped_release release;
            self.submit(ticket, pixels, times_or_now(times));
          },
          py::arg("ticket"), py::arg("image"), py::arg("times") = py::none())
      .def("take_completed", &take_completed,
           "Blocks for finished submissions: [(ticket, error or None, probabilities, gater logits, route, "
           "latency_ms)];\n"
           "an empty list means closed and drained.")
      .def_property(
          "latency_weight", [](const Pipeline& self) { return self.latency_weight(); },
          [](Pipeline& self, float weight) { self.set_latency_weight(weight); })
      .def_property(
          "verify_below", [](const Pipeline& self) { return self.verify_below(); },
          [](Pipeline& self, float probability) { self.set_verify_below(probability); })
      .def("stats", &stats)
      .def("latencies", &latencies, py::arg("limits_ns"),
           "By stage: how many are within each limit, how many there are, and their sum in milliseconds.")
      .def_property_readonly("closed", [](const Pipeline& self) { return self.closing(); })
      .def(
          "close", [](Pipeline& self, bool cancel_pending) { return self.close(cancel_pending); },
          py::arg("cancel_pending"), py::call_guard<py::gil_scoped_release>(),
          "False: called out of a predict on this thread, by a signal handler; close once more after it.");
  register_device_pipeline(pipeline);
}

}  // namespace trt_moe
