#include "backends/cuda/graph_engine.h"

#include <array>
#include <utility>

#include "backends/cuda/on_device.h"
#include "backends/cuda/plan/align.h"
#include "core/error.h"

namespace trt_moe::cuda {

namespace {

// What CUDA allows in no body of a conditional node, or not inside a child graph there.
constexpr std::array kIllegalNodes{"host",    "eventRecord", "waitEvent",   "extSemSignal",   "extSemWait", "memAlloc",
                                   "memFree", "batchMemOp",  "conditional", "memcpyPageable", "other"};

const char* text(MemoryKind kind) {
  switch (kind) {
    case MemoryKind::kDevice: return "device memory";
    case MemoryKind::kPinned: return "page-locked host memory";
  }
  return "memory";
}

}  // namespace

std::unique_ptr<Buffer> allocate_for(StreamDevice& device, const std::string& model, MemoryKind kind,
                                     std::size_t bytes) {
  return on_device(device, model, [&] {
    try {
      return device.allocate(kind, bytes);
    } catch (const Error& error) {
      throw Error(ErrorKind::kDevice, "needs " + std::to_string(bytes) + " bytes of " + text(kind) + " on " +
                                          device.info().name + ": " + error.what() +
                                          "; free some, or use smaller batch sizes");
    }
  });
}

ModelMemory::ModelMemory(StreamDevice& device, const std::string& model, const ArenaPlan& plan)
    : plan_(plan), arena_(allocate_for(device, model, MemoryKind::kDevice, plan.bytes)) {}

std::uintptr_t ModelMemory::reserve_activation(StreamDevice& device, const std::string& model, std::size_t bytes) {
  activation_ = allocate_for(device, model, MemoryKind::kDevice, bytes);
  return activation_->device();
}

MemoryUse ModelMemory::use() const noexcept { return {arena_->size() + (activation_ ? activation_->size() : 0), 0}; }

// Owns its staging memory on the host; everything else is the engine's.
class GraphEngine::GraphSession final : public OverlappingSession {
 public:
  GraphSession(std::shared_ptr<GraphEngine> engine, std::size_t images)
      : engine_(std::move(engine)),
        input_bytes_(images * engine_->info_.input.bytes()),
        staging_(allocate_for(*engine_->device_, engine_->name_, MemoryKind::kPinned,
                              aligned(input_bytes_) + images * engine_->info_.outputs * sizeof(float))) {
    engine_->pinned_ += staging_->size();
  }
  ~GraphSession() override { engine_->pinned_ -= staging_->size(); }
  GraphSession(const GraphSession&) = delete;
  GraphSession& operator=(const GraphSession&) = delete;

  std::span<std::uint8_t> input() override { return {reinterpret_cast<std::uint8_t*>(staging_->host()), input_bytes_}; }

  void start(std::size_t images) override {
    const EngineInfo& info = engine_->info_;
    std::unique_lock lock(engine_->mutex_);
    Stream& stream = *engine_->stream_;
    enqueue_on(*engine_->device_, engine_->name_, stream, [&] {
      stream.copy_own(engine_->memory_.input(), address(staging_->host()), images * info.input.bytes());
      engine_->buckets_[info.buckets.holding(images)].exec->launch(stream);
      stream.copy_own(address(logits()), engine_->memory_.output(), images * info.outputs * sizeof(float));
    });
    images_ = images;
    running_ = std::move(lock);
  }

  std::span<const float> finish() override {
    const std::unique_lock lock = std::move(running_);
    on_device(*engine_->device_, engine_->name_, [&] { engine_->stream_->synchronize(); });
    return {reinterpret_cast<const float*>(logits()), images_ * engine_->info_.outputs};
  }

  std::span<const float> run(std::size_t images) override {
    start(images);
    return finish();
  }

 private:
  static std::uintptr_t address(const std::byte* host) { return reinterpret_cast<std::uintptr_t>(host); }
  std::byte* logits() const noexcept { return staging_->host() + aligned(input_bytes_); }

  std::shared_ptr<GraphEngine> engine_;
  std::size_t input_bytes_;
  std::unique_ptr<Buffer> staging_;
  std::unique_lock<FairMutex> running_;  // from start to finish
  std::size_t images_ = 0;
};

GraphEngine::GraphEngine(std::string name, EngineInfo info, std::shared_ptr<void> owner,
                         std::shared_ptr<StreamDevice> device, std::unique_ptr<Stream> stream, ModelMemory memory,
                         std::vector<CapturedBucket> buckets)
    : name_(std::move(name)),
      info_(std::move(info)),
      owner_(std::move(owner)),
      device_(std::move(device)),
      stream_(std::move(stream)),
      memory_(std::move(memory)),
      buckets_(std::move(buckets)) {}

std::unique_ptr<Session> GraphEngine::open(Lane lane) {
  return std::make_unique<GraphSession>(shared_from_this(), lane == Lane::kLatency ? 1 : info_.buckets.largest());
}

MemoryUse GraphEngine::memory_use() const noexcept {
  MemoryUse use = memory_.use();
  use.pinned += pinned_.load();
  return use;
}

CapturedModel GraphEngine::captured(std::size_t bucket) const {
  return {buckets_[bucket].graph.get(), memory_.input(), memory_.output(), info_.buckets.sizes()[bucket]};
}

std::string GraphEngine::unroutable() const {
  std::string found;
  for (std::size_t bucket = 0; bucket < buckets_.size(); ++bucket) {
    const NodeHistogram& nodes = buckets_[bucket].graph->nodes();
    for (const char* kind : kIllegalNodes) {
      const auto node = nodes.find(kind);
      if (node == nodes.end()) continue;
      found += (found.empty() ? "" : ", ") + std::to_string(node->second) + " " + kind + " at batch size " +
               std::to_string(info_.buckets.sizes()[bucket]);
    }
  }
  return found.empty() ? "" : "model " + name_ + " was captured with nodes that no conditional graph holds: " + found;
}

}  // namespace trt_moe::cuda
