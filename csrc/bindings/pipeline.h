#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/typing.h>

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backends/pipeline.h"

namespace trt_moe {

// In a fork, a pipeline of the parent's is left as it is: its threads are not there to be ended.
struct LeaveInFork {
  void operator()(Pipeline* pipeline) const {
    if (!pipeline->forked()) delete pipeline;
  }
};
using PipelineHolder = std::unique_ptr<Pipeline, LeaveInFork>;
using PipelineClass = pybind11::class_<Pipeline, PipelineHolder>;

using Answers = pybind11::typing::Tuple<pybind11::array_t<float>, pybind11::array_t<float>,
                                        pybind11::array_t<std::int64_t>, pybind11::array_t<float>>;

// Arrays for the answers to some images, and where they lie.
struct AnswerArrays {
  AnswerArrays(const Scheduler& scheduler, std::size_t images);
  OutputRows rows();
  Answers take();

  pybind11::array_t<float> probabilities;
  pybind11::array_t<float> gater_logits;
  pybind11::array_t<std::int64_t> routes;
  pybind11::array_t<float> latency_ms;
};

// Whether the images lie in an array that `input_buffer` gave.
bool in_input_buffer(const pybind11::array& images);

// When a call was made and is due; one that does not tell is made now, and due whenever it is answered.
inline CallTimes times_or_now(const std::optional<CallTimes>& given) {
  return given ? *given : CallTimes::within(kNoLimit);
}

// Where `images` answers are kept on the device, if anywhere. Throws Error(kInput) when they do not fit.
const DeviceRows* kept_rows(const std::optional<cuda::DeviceOutputs::Rows>& keep, std::size_t images);

// What only pipelines on a CUDA device do. Before the pipeline's own methods, whose signatures name `DeviceRows`.
void register_device_rows(pybind11::module_& module);
void register_device_pipeline(PipelineClass& pipeline);

}  // namespace trt_moe
