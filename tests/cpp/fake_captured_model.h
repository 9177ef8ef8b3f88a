#pragma once

#include <memory>
#include <string>
#include <utility>

#include "backends/cuda/graph_engine.h"
#include "backends/cuda/model_capture.h"
#include "fake_backend.h"
#include "fake_stream_device.h"

namespace trt_moe::testing {

// What a runtime such as TensorRT does between begin and end: it enqueues the model at the capture's addresses.
inline void enqueue_model(const cuda::ModelCapture& capture, const FakeModel& model, std::size_t bucket,
                          const std::string& kind = "kernel") {
  const auto* const input = reinterpret_cast<const std::uint8_t*>(capture.memory().input());
  auto* const output = reinterpret_cast<float*>(capture.memory().output());
  reinterpret_cast<FakeStream*>(capture.stream())->enqueue(kind, [=] {
    for (std::size_t i = 0; i < bucket; ++i) {
      model.compute({input + i * model.input.bytes(), model.input.bytes()},
                    {output + i * model.outputs, model.outputs});
    }
  });
}

inline std::shared_ptr<cuda::GraphEngine> capture_model(const std::shared_ptr<FakeStreamDevice>& device,
                                                        const std::string& name, const FakeModel& model,
                                                        const std::string& kind = "kernel") {
  cuda::ModelCapture capture(device, {name, model.input, model.outputs, model.buckets, "fp32"});
  for (const std::size_t bucket : model.buckets) {
    capture.begin(bucket);
    enqueue_model(capture, model, bucket, kind);
    capture.end();
  }
  return capture.finish(nullptr);
}

}  // namespace trt_moe::testing
