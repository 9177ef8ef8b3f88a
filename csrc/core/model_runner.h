#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "core/backend.h"
#include "core/forks.h"
#include "core/tensor_view.h"

namespace trt_moe {

// Runs one engine by itself, past any routing: for golden checks, baselines and profiles. Thread-safe.
class ModelRunner {
 public:
  explicit ModelRunner(std::shared_ptr<Engine> engine) : engine_(std::move(engine)) {}

  const std::shared_ptr<Engine>& engine() const noexcept { return engine_; }

  // logits: [images.count * outputs], written in input order. `poll` (may be null) is called every kPollEvery, between
  // batches; what it throws ends the call.
  void logits(ImageBatchView images, float* logits, void (*poll)());

  // Wall time of single-image inference, one value an iteration, in milliseconds.
  void time(const std::uint8_t* image, std::size_t warmup, std::span<double> milliseconds, void (*poll)());

 private:
  class Lease;

  std::shared_ptr<Engine> engine_;
  ForkMark process_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Session>> idle_latency_;
  std::vector<std::unique_ptr<Session>> idle_throughput_;
};

}  // namespace trt_moe
