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
  // conditionals: kIf or kSwitch, that the device has. speculate: the first expert runs a lone image beside the gater,
  // if nothing else is under way.
  // Throws Error(kDevice) when the device refuses a graph or memory for it. The engines are of one device, no two
  // are the same, and none is unroutable.
  DeviceRoutedPlan(std::shared_ptr<GraphEngine> gater, std::vector<std::shared_ptr<GraphEngine>> experts,
                   Conditionals conditionals, bool speculate);

  std::size_t capacity() const override { return buckets_.largest(); }
  RoutedRows run(ImageBatchView images, const RoutedCall& call) override;
  RoutedRows run(const DeviceImages& images, const RoutedCall& call) override;

  MemoryUse memory_use() const noexcept;
  // How long all runs together have waited for the device; the rest of their time is the host's.
  std::chrono::nanoseconds waited() const noexcept { return waited_.load(std::memory_order_relaxed); }

 private:
  struct Slot {
    RoutedLayout layout;
    std::unique_ptr<GraphExec> exec;
  };
  struct Slots {
    std::vector<Slot> of_bucket;  // their graphs find the images on the device
    Slot lone;                    // for one image, which its graph brings from the host
  };
  class AllModels;

  RoutedLayout layout_of(std::size_t images) const;
  Slots make_slots(std::size_t buckets, bool speculate) const;
  Slot make_slot(const RoutedLayout& layout, std::size_t bucket, bool speculate) const;
  RoutedGraph graph_for(std::size_t bucket, const RoutedLayout& layout, bool speculate) const;
  const Slots& slots_for(std::size_t images, const RoutedCall& call) const noexcept;
  void write_control(const RoutedLayout& layout, std::size_t images, const RoutedCall& call) const;
  // images: at address 0 where the slot's own graph brings them. own: whether the device allocated their memory.
  RoutedRows answer(const Slot& slot, const DeviceImages& images, const RoutedCall& call, bool own);
  void launch(const Slot& slot, std::size_t images, const DeviceRows* keep);
  RoutedRows finish(const RoutedLayout& layout, std::size_t images);

  std::shared_ptr<GraphEngine> gater_;
  std::vector<std::shared_ptr<GraphEngine>> experts_;
  std::shared_ptr<StreamDevice> device_;
  std::size_t classes_;
  Conditionals conditionals_;
  std::vector<FairMutex*> mutexes_;  // the experts', then the gater's
  Buckets buckets_;
  std::unique_ptr<Buffer> host_in_;
  std::unique_ptr<Buffer> lists_;  // rows, then counts
  std::unique_ptr<Buffer> out_;
  std::unique_ptr<Stream> stream_;
  Slots slots_;
  Slots speculating_;  // for one image; none unless it speculates
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
