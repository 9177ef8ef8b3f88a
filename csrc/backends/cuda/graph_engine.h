#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backends/cuda/fair_mutex.h"
#include "backends/cuda/plan/arena_plan.h"
#include "backends/cuda/stream_device.h"
#include "core/backend.h"

namespace trt_moe::cuda {

struct MemoryUse {
  std::size_t device = 0;  // bytes, without what the model's own runtime holds, such as its weights
  std::size_t pinned = 0;  // bytes of page-locked host memory
};

// The memory that a model's graphs were captured with.
class ModelMemory {
 public:
  // Throws Error(kDevice) that names the model and the bytes.
  ModelMemory(StreamDevice& device, const std::string& model, const ArenaPlan& plan);

  std::uintptr_t control() const noexcept {
    return arena_->device();
  }  // ArenaPlan::input bytes, with the input right behind them
  std::uintptr_t input() const noexcept { return control() + plan_.input; }
  std::uintptr_t output() const noexcept { return arena_->device() + plan_.output; }
  // Shared by the batch sizes of the model, and by nothing else: models may run at once.
  std::uintptr_t reserve_activation(StreamDevice& device, const std::string& model, std::size_t bytes);
  MemoryUse use() const noexcept;

 private:
  ArenaPlan plan_;
  std::unique_ptr<Buffer> arena_;
  std::unique_ptr<Buffer> activation_;
};

// Memory for a model. Throws Error(kDevice) that names the model and the bytes.
std::unique_ptr<Buffer> allocate_for(StreamDevice& device, const std::string& model, MemoryKind kind,
                                     std::size_t bytes);

struct CapturedBucket {
  std::unique_ptr<Graph> graph;
  std::unique_ptr<GraphExec> exec;
};

// A model whose work was captured once for each bucket. One run at a time: its buckets share their memory.
class GraphEngine final : public Engine, public std::enable_shared_from_this<GraphEngine> {
 public:
  // owner: what the captured work needs to stay alive, such as the runtime's own engine; may be null.
  GraphEngine(std::string name, EngineInfo info, std::shared_ptr<void> owner, std::shared_ptr<StreamDevice> device,
              std::unique_ptr<Stream> stream, ModelMemory memory, std::vector<CapturedBucket> buckets);

  const EngineInfo& info() const override { return info_; }
  std::unique_ptr<Session> open(Lane lane) override;

  const std::string& name() const noexcept { return name_; }
  const std::shared_ptr<StreamDevice>& device() const noexcept { return device_; }
  const ModelMemory& memory() const noexcept { return memory_; }
  MemoryUse memory_use() const noexcept;
  CapturedModel captured(std::size_t bucket) const;  // bucket: an index
  // Why its graphs cannot be part of a conditional graph; empty: they can.
  std::string unroutable() const;
  // Held by whoever runs a graph of this model or of its captures.
  FairMutex& mutex() noexcept { return mutex_; }

 private:
  class GraphSession;

  std::string name_;
  EngineInfo info_;
  std::shared_ptr<void> owner_;
  std::shared_ptr<StreamDevice> device_;
  std::unique_ptr<Stream> stream_;
  ModelMemory memory_;
  std::vector<CapturedBucket> buckets_;
  std::atomic<std::size_t> pinned_{0};
  FairMutex mutex_;
};

}  // namespace trt_moe::cuda
