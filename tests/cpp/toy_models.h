#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backends/cuda/graph_engine.h"
#include "backends/cuda/model_capture.h"
#include "backends/cuda/open_device.h"
#include "toy_kernels.h"

namespace trt_moe::testing {

// The models of fake_backend.h on the GPU, captured as a runtime's would be.
struct ToyModel {
  ImageShape input;
  std::size_t outputs = 0;
  double scale = 0;
  std::vector<std::size_t> buckets{1, 4, 16};
};

inline ToyModel toy_gater(ImageShape input, std::size_t experts) { return {input, experts, 40.0}; }
inline ToyModel toy_expert(ImageShape input, std::size_t classes, std::size_t index) {
  return {input, classes, 20.0 * static_cast<double>(index + 1)};
}

inline std::shared_ptr<cuda::StreamDevice> the_gpu() {
  static const std::shared_ptr<cuda::StreamDevice> device = cuda::open_device(0);
  return device;
}

inline void enqueue_toy(const cuda::ModelCapture& capture, const ToyModel& model, std::size_t bucket) {
  enqueue_toy_model(capture.stream(), capture.memory().input(), capture.memory().output(), bucket, model.input.bytes(),
                    model.outputs, model.scale);
}

inline std::shared_ptr<cuda::GraphEngine> capture_toy(const std::string& name, const ToyModel& model) {
  cuda::ModelCapture capture(the_gpu(), {name, model.input, model.outputs, model.buckets, "fp32"});
  for (const std::size_t bucket : model.buckets) {
    enqueue_toy(capture, model, bucket);  // to warm up
    capture.synchronize();                // or it may write over the outputs of another stream's first run
    capture.begin(bucket);
    enqueue_toy(capture, model, bucket);
    capture.end();
  }
  return capture.finish(nullptr);
}

}  // namespace trt_moe::testing
