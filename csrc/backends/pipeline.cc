#include "backends/pipeline.h"

#include <algorithm>

#include "core/error.h"
#include "core/poller.h"

namespace trt_moe {

namespace {

// Of images on their way from the device to the host, for each caller: page-locked memory is dear.
constexpr std::size_t kStagedBytes = std::size_t{64} << 20;

}  // namespace

Pipeline::Pipeline(const std::shared_ptr<Engine>& gater, const std::vector<Expert>& experts,
                   const SchedulerOptions& options, bool device_routed)
    : Scheduler(gater, experts, options) {
  std::vector<std::shared_ptr<Engine>> models{gater};
  for (const Expert& expert : experts) models.push_back(expert.engine);
  for (const auto& model : models) {
    if (auto captured = std::dynamic_pointer_cast<cuda::GraphEngine>(model)) captured_.push_back(captured);
  }
  if (captured_.empty()) {
    routing_.reason = "the models run on the CPU";
    return;
  }
  const auto& device = captured_.front()->device();
  const std::size_t staged = std::clamp<std::size_t>(kStagedBytes / input().bytes(), 1, max_batch());
  device_input_ = std::make_unique<cuda::DeviceInput>(device, input().bytes(), staged);
  device_outputs_ = std::make_unique<cuda::DeviceOutputs>(device, Scheduler::experts(), classes());
  if (!device_routed) {
    routing_.reason = "device routing was not asked for";
    return;
  }
  routing_ = cuda::choose_routing(gater, {models.begin() + 1, models.end()}, options.speculate);
  if (routing_.plan) use(routing_.plan);
}

void Pipeline::predict_there(const DeviceImages& images, const OutputRows& rows, void (*poll)(), const DeviceRows* keep,
                             const CallTimes& times) {
  if (!device_input_ || images.address == 0 || images.count == 0) {
    throw Error(ErrorKind::kInput, "found " + std::to_string(images.count) + " images at device address " +
                                       std::to_string(images.address) +
                                       (device_input_ ? "" : " for models on the CPU") +
                                       "; expected at least one, on the models' CUDA device");
  }
  device_input_->expect_on_device(images);
  if (keep != nullptr || images_stay_on_device()) return predict(images, rows, poll, keep, times);
  admit(images.count, [&](bool alone) {
    Poller between(poll);
    for (std::size_t begin = 0; begin < images.count; begin += device_input_->capacity()) {
      const std::size_t count = std::min(device_input_->capacity(), images.count - begin);
      const cuda::DeviceInput::OnHost there(*device_input_, images.part(begin, count));
      answer(there.view(), rows.part(begin, classes(), experts()), times.before(images.count - begin - count), poll,
             nullptr, alone);
      between();
    }
  });
}

cuda::DeviceOutputs::Rows Pipeline::device_rows(std::size_t images) const {
  if (!device_outputs_ || images == 0) {
    throw Error(ErrorKind::kInput, "rows for " + std::to_string(images) + " answers were asked for" +
                                       (device_outputs_ ? "" : " of models on the CPU") +
                                       "; expected at least one, on the models' CUDA device");
  }
  return device_outputs_->take(images);
}

std::unique_ptr<cuda::Buffer> Pipeline::input_block(std::size_t images) const {
  if (!routing_.plan) return nullptr;
  return cuda::allocate_for(*captured_.front()->device(), "an input buffer", cuda::MemoryKind::kPinned,
                            images * input().bytes());
}

std::map<std::string, cuda::MemoryUse> Pipeline::memory_use() const {
  std::map<std::string, cuda::MemoryUse> use;
  for (const auto& model : captured_) use[model->name()] = model->memory_use();
  if (device_input_) use["images for the host"] = device_input_->memory_use();
  if (device_outputs_) use["answers on the device"] = device_outputs_->memory_use();
  if (routing_.plan) use["device-routed plan"] = routing_.plan->memory_use();
  return use;
}

std::chrono::nanoseconds Pipeline::waited() const noexcept {
  return routing_.plan ? routing_.plan->waited() : std::chrono::nanoseconds{};
}

}  // namespace trt_moe
