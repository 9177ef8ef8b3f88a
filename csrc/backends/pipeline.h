#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backends/cuda/device_input.h"
#include "backends/cuda/device_output.h"
#include "backends/cuda/device_routed_plan.h"
#include "backends/cuda/graph_engine.h"
#include "core/scheduler.h"

namespace trt_moe {

// A scheduler with what its models have on a CUDA device, if they are on one: the device-routed plan where they allow
// it, images and answers that lie there, and memory to write images into.
class Pipeline final : public Scheduler {
 public:
  // device_routed: asked for; `plan_reason` says what came of it. options.speculate is for both plans.
  Pipeline(const std::shared_ptr<Engine>& gater, const std::vector<Expert>& experts, const SchedulerOptions& options,
           bool device_routed);

  // Answers images that lie on the models' device, wherever they are routed: see Scheduler::predict. Throws
  // Error(kInput) where there are none, where they lie elsewhere, and where `keep` is given but answers cannot stay.
  void predict_there(const DeviceImages& images, const OutputRows& rows, void (*poll)(), const DeviceRows* keep,
                     const CallTimes& times = CallTimes::within(kNoLimit));

  // Memory for predict's `keep`. Throws Error(kInput) for models on the CPU, Error(kDevice).
  cuda::DeviceOutputs::Rows device_rows(std::size_t images) const;

  // Page-locked memory for so many images, which `predict` reads in place; null where it would not. Throws
  // Error(kDevice).
  std::unique_ptr<cuda::Buffer> input_block(std::size_t images) const;

  // By model and by what else there is.
  std::map<std::string, cuda::MemoryUse> memory_use() const;
  // To make others' work on the device be waited for, see DeviceImages::stream; 0 on the CPU.
  std::uintptr_t input_stream() const noexcept { return device_input_ ? device_input_->stream() : 0; }
  // How long all device-routed predicts together have waited for the device.
  std::chrono::nanoseconds waited() const noexcept;
  const std::string& plan_reason() const noexcept { return routing_.reason; }

 private:
  std::vector<std::shared_ptr<cuda::GraphEngine>> captured_;  // those of its models that are on a device
  std::unique_ptr<cuda::DeviceInput> device_input_;           // none on the CPU
  std::unique_ptr<cuda::DeviceOutputs> device_outputs_;       // none on the CPU
  cuda::Routing routing_;
};

}  // namespace trt_moe
