#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backends/cuda/fair_mutex.h"
#include "backends/cuda/graph_engine.h"
#include "backends/cuda/plan/routed_graph.h"
#include "backends/cuda/stream_device.h"
#include "core/backend.h"

namespace trt_moe::cuda {

// One conditional graph for each batch size of the gater, made of the models' captured graphs. Costs and latency
// weight travel with the images, so a change of them needs no new graph. The graphs share one set of blocks: one
// run at a time. A second slot would need a second capture of every model, as a graph's addresses are fixed.
class DeviceRoutedPlan final : public RoutedPlan {
 public:
  // speculate: the first expert runs a lone image beside the gater.
  // Throws Error(kDevice) when the device refuses a graph or memory for it. The engines are of one device, no two
  // are the same, and none is unroutable.
  DeviceRoutedPlan(std::shared_ptr<GraphEngine> gater, std::vector<std::shared_ptr<GraphEngine>> experts,
                   bool speculate);

  std::size_t capacity() const override { return buckets_.largest(); }
  RoutedRows run(ImageBatchView images, std::span<const float> costs, float latency_weight,
                 const DeviceRows* keep) override;
  RoutedRows run(const DeviceImages& images, std::span<const float> costs, float latency_weight,
                 const DeviceRows* keep) override;

  // uint8 [capacity, H, W, C] where images may be written in place; a run on any other images overwrites it.
  std::span<std::uint8_t> input() const noexcept;
  MemoryUse memory_use() const noexcept;
  // How long all runs together have waited for the device; the rest of their time is the host's.
  std::chrono::nanoseconds waited() const noexcept { return waited_.load(std::memory_order_relaxed); }

 private:
  struct Slot {
    RoutedLayout layout;
    std::unique_ptr<GraphExec> exec;
  };
  class AllModels;

  std::vector<Slot> make_slots(bool images_on_device) const;
  RoutedGraph graph_for(std::size_t bucket, const RoutedLayout& layout) const;
  std::byte* block_in() const noexcept { return host_in_ ? host_in_->host() : gater_->memory().mapped(); }
  std::uintptr_t block_out() const noexcept { return device_out_ ? device_out_->device() : host_out_->device(); }
  void write_control(const RoutedLayout& layout, std::size_t images, std::span<const float> costs,
                     float latency_weight) const;
  void launch(const Slot& slot, std::size_t images, const DeviceRows* keep);
  RoutedRows finish(const RoutedLayout& layout, std::size_t images);

  std::shared_ptr<GraphEngine> gater_;
  std::vector<std::shared_ptr<GraphEngine>> experts_;
  std::shared_ptr<StreamDevice> device_;
  std::size_t classes_;
  bool speculate_;
  std::vector<FairMutex*> mutexes_;  // the experts', then the gater's
  Buckets buckets_;
  std::unique_ptr<Buffer> host_in_;     // none where the gater's input is mapped
  std::unique_ptr<Buffer> lists_;       // rows, then counts
  std::unique_ptr<Buffer> device_out_;  // none where host_out_ is mapped
  std::unique_ptr<Buffer> host_out_;
  std::unique_ptr<Stream> stream_;
  std::vector<Slot> slots_;         // one a bucket
  std::vector<Slot> device_slots_;  // the same for images that are on the device; made when the first come
  std::atomic<std::chrono::nanoseconds> waited_{};
};

struct Routing {
  std::shared_ptr<DeviceRoutedPlan> plan;  // null: host-routed
  std::string reason;                      // of either
};

// The device-routed plan where these engines and their device have one. Throws Error(kDeviceLost) only.
Routing choose_routing(const std::shared_ptr<Engine>& gater, const std::vector<std::shared_ptr<Engine>>& experts,
                       bool speculate = false);

}  // namespace trt_moe::cuda
