#include "backends/cuda/device_routed_plan.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "backends/cuda/on_device.h"
#include "backends/cuda/plan/align.h"
#include "backends/cuda/plan/graph_topology.h"
#include "backends/cuda/plan/versions.h"
#include "core/error.h"

namespace trt_moe::cuda {

namespace {

constexpr const char* kRoutedPlan = "the device-routed plan";

// The gater's batch sizes that every expert can take whole.
std::vector<std::size_t> common_sizes(const GraphEngine& gater,
                                      const std::vector<std::shared_ptr<GraphEngine>>& experts) {
  std::size_t most = gater.info().buckets.largest();
  for (const auto& expert : experts) most = std::min(most, expert->info().buckets.largest());
  const auto sizes = gater.info().buckets.sizes();
  return {sizes.begin(), std::upper_bound(sizes.begin(), sizes.end(), most)};
}

std::uintptr_t address(const void* host) { return reinterpret_cast<std::uintptr_t>(host); }

template <typename T>
std::span<const T> part(const std::byte* block, std::size_t offset, std::size_t count) {
  return {reinterpret_cast<const T*>(block + offset), count};
}

}  // namespace

// Holds every model's mutex, each taken while those before it are held. Who else holds several takes them in this order
// too: a speculating expert, the first one, then the gater, and that expert still, then another.
class DeviceRoutedPlan::AllModels {
 public:
  explicit AllModels(const std::vector<FairMutex*>& mutexes) : mutexes_(mutexes) {
    for (FairMutex* mutex : mutexes_) mutex->lock();
  }
  ~AllModels() {
    for (FairMutex* mutex : mutexes_) mutex->unlock();
  }
  AllModels(const AllModels&) = delete;
  AllModels& operator=(const AllModels&) = delete;

 private:
  const std::vector<FairMutex*>& mutexes_;
};

DeviceRoutedPlan::DeviceRoutedPlan(std::shared_ptr<GraphEngine> gater,
                                   std::vector<std::shared_ptr<GraphEngine>> experts, Conditionals conditionals,
                                   bool speculate)
    : gater_(std::move(gater)),
      experts_(std::move(experts)),
      device_(gater_->device()),
      classes_(experts_.front()->info().outputs),
      conditionals_(conditionals),
      buckets_(common_sizes(*gater_, experts_), Batching::kPadded) {
  for (const auto& expert : experts_) mutexes_.push_back(&expert->mutex());
  mutexes_.push_back(&gater_->mutex());

  const auto allocate = [&](MemoryKind kind, std::size_t bytes) {
    return allocate_for(*device_, kRoutedPlan, kind, bytes);
  };
  const RoutedLayout largest = layout_of(capacity());
  lists_ = allocate(MemoryKind::kDevice, aligned(capacity() * experts_.size() * sizeof(std::int32_t)) +
                                             experts_.size() * sizeof(std::int32_t));
  host_in_ = allocate(MemoryKind::kPinned, largest.in_bytes);
  out_ = allocate(MemoryKind::kPinned, largest.out_bytes);
  stream_ = on_device(*device_, kRoutedPlan, [&] { return device_->open_stream(); });
  slots_ = make_slots(buckets_.sizes().size(), false);
  if (speculate) speculating_ = make_slots(1, true);
}

DeviceRoutedPlan::Slots DeviceRoutedPlan::make_slots(std::size_t buckets, bool speculate) const {
  Slots slots;
  for (std::size_t bucket = 0; bucket < buckets; ++bucket) {
    RoutedLayout layout = layout_of(buckets_.sizes()[bucket]);
    layout.in_bytes = layout.images;
    slots.of_bucket.push_back(make_slot(layout, bucket, speculate));
  }
  // A copy apart from the graph's would cost a lone image the most.
  RoutedLayout layout = layout_of(1);
  layout.in_bytes = layout.images + gater_->info().input.bytes();
  slots.lone = make_slot(layout, 0, speculate);
  return slots;
}

RoutedLayout DeviceRoutedPlan::layout_of(std::size_t images) const {
  return routed_layout(images, experts_.size(), classes_, gater_->info().input.bytes());
}

DeviceRoutedPlan::Slot DeviceRoutedPlan::make_slot(const RoutedLayout& layout, std::size_t bucket,
                                                   bool speculate) const {
  const RoutedGraph graph = graph_for(bucket, layout, speculate);
  return {layout, on_device(*device_, kRoutedPlan, [&] { return device_->instantiate(graph); })};
}

RoutedGraph DeviceRoutedPlan::graph_for(std::size_t bucket, const RoutedLayout& layout, bool speculate) const {
  RoutedGraph graph;
  graph.gater = gater_->captured(bucket);
  std::vector<std::size_t> counts;
  for (const auto& expert : experts_) {
    // A larger one is never taken.
    const std::size_t last = expert->info().buckets.holding(graph.gater.bucket);
    std::vector<CapturedModel>& captured = graph.experts.emplace_back();
    for (std::size_t i = 0; i <= last; ++i) captured.push_back(expert->captured(i));
    counts.push_back(captured.size());
  }
  graph.topology = graph_topology(counts, graph.gater.bucket, conditionals_, speculate);
  graph.classes = classes_;
  graph.image_bytes = gater_->info().input.bytes();
  graph.layout = layout;
  graph.device_in = gater_->memory().control();
  graph.host_in = address(host_in_->host());
  graph.rows = lists_->device();
  graph.counts = lists_->device() + aligned(capacity() * experts_.size() * sizeof(std::int32_t));
  graph.out = address(out_->host());
  return graph;
}

const DeviceRoutedPlan::Slots& DeviceRoutedPlan::slots_for(std::size_t images, const RoutedCall& call) const noexcept {
  const bool speculates = images == 1 && call.alone && !speculating_.of_bucket.empty();
  return speculates ? speculating_ : slots_;
}

void DeviceRoutedPlan::write_control(const RoutedLayout& layout, std::size_t images, const RoutedCall& call) const {
  std::byte* const block = host_in_->host();
  const auto count = static_cast<std::int32_t>(images);
  std::memcpy(block, &count, sizeof(count));
  std::memcpy(block + layout.weight, &call.latency_weight, sizeof(call.latency_weight));
  std::memcpy(block + layout.costs, call.costs.data(), call.costs.size_bytes());
}

void DeviceRoutedPlan::launch(const Slot& slot, std::size_t images, const DeviceRows* keep) {
  slot.exec->launch(*stream_);
  if (keep == nullptr) return;
  const std::uintptr_t out = address(out_->host());
  stream_->copy_own(keep->routes, out, images * sizeof(std::int32_t));
  stream_->copy_own(keep->gater_logits, out + slot.layout.gater_logits, images * experts_.size() * sizeof(float));
  stream_->copy_own(keep->probabilities, out + slot.layout.probabilities, images * classes_ * sizeof(float));
}

// Called by one thread at a time.
RoutedRows DeviceRoutedPlan::finish(const RoutedLayout& layout, std::size_t images) {
  const auto start = std::chrono::steady_clock::now();
  on_device(*device_, kRoutedPlan, [&] { stream_->synchronize(); });
  waited_.store(waited() + (std::chrono::steady_clock::now() - start), std::memory_order_relaxed);
  const std::byte* const out = out_->host();
  return {part<std::int32_t>(out, 0, images), part<float>(out, layout.gater_logits, images * experts_.size()),
          part<float>(out, layout.probabilities, images * classes_)};
}

RoutedRows DeviceRoutedPlan::run(ImageBatchView images, const RoutedCall& call) {
  const AllModels models(mutexes_);
  const Slots& slots = slots_for(images.count, call);
  DeviceImages from{address(images.data), images.count, images.image_bytes};
  if (!images.page_locked) {
    std::byte* const staged = host_in_->host() + slots.lone.layout.images;
    std::memcpy(staged, images.data, images.count * images.image_bytes);
    from.address = address(staged);
    if (images.count == 1) return answer(slots.lone, {0, 1, images.image_bytes}, call, true);
  }
  return answer(slots.of_bucket[buckets_.holding(images.count)], from, call, true);
}

RoutedRows DeviceRoutedPlan::run(const DeviceImages& images, const RoutedCall& call) {
  const AllModels models(mutexes_);
  return answer(slots_for(images.count, call).of_bucket[buckets_.holding(images.count)], images, call, false);
}

RoutedRows DeviceRoutedPlan::answer(const Slot& slot, const DeviceImages& images, const RoutedCall& call, bool own) {
  write_control(slot.layout, images.count, call);
  enqueue_on(*device_, kRoutedPlan, *stream_, [&] {
    if (images.stream != 0) stream_->wait_for(images.stream);
    if (images.address != 0) {
      const std::size_t bytes = images.count * images.image_bytes;
      const std::uintptr_t input = gater_->memory().input();
      own ? stream_->copy_own(input, images.address, bytes) : stream_->copy(input, images.address, bytes);
    }
    launch(slot, images.count, call.keep);
  });
  return finish(slot.layout, images.count);
}

MemoryUse DeviceRoutedPlan::memory_use() const noexcept { return {lists_->size(), host_in_->size() + out_->size()}; }

Routing choose_routing(const std::shared_ptr<Engine>& gater, const std::vector<std::shared_ptr<Engine>>& experts,
                       bool speculate) {
  std::vector<std::shared_ptr<GraphEngine>> models{std::dynamic_pointer_cast<GraphEngine>(gater)};
  for (const auto& expert : experts) models.push_back(std::dynamic_pointer_cast<GraphEngine>(expert));
  for (const auto& model : models) {
    if (!model) return {nullptr, "not every model runs on a CUDA device"};
    if (model->device() != models.front()->device()) return {nullptr, "the models run on different devices"};
    if (std::count(models.begin(), models.end(), model) > 1) {
      return {nullptr, "model " + model->name() + " is there twice, and its memory serves one run at a time"};
    }
  }
  const DeviceInfo& info = models.front()->device()->info();
  const std::string versions =
      "driver for CUDA " + version_text(info.driver_version) + ", runtime " + version_text(info.runtime_version);
  if (info.conditionals == Conditionals::kNone) {
    return {nullptr, "conditional graph nodes need CUDA 12.4 in driver and runtime; found a " + versions};
  }
  for (const auto& model : models) {
    if (const std::string why = model->unroutable(); !why.empty()) return {nullptr, why};
  }
  try {
    auto plan = std::make_shared<DeviceRoutedPlan>(
        models.front(), std::vector<std::shared_ptr<GraphEngine>>(models.begin() + 1, models.end()), info.conditionals,
        speculate);
    // A driver may take a graph and still refuse to launch it: known now, the host can route in its place. The graph
    // for a single image is of another kind than those for more, and one that speculates than one that does not.
    const std::size_t bytes = models.front()->info().input.bytes();
    const std::vector<std::uint8_t> black(plan->capacity() * bytes);
    const std::vector<float> costs(experts.size());
    for (const bool alone : {true, false}) {
      for (const std::size_t images : {std::size_t{1}, plan->capacity()}) {
        plan->run(ImageBatchView{black.data(), images, bytes}, RoutedCall{.costs = costs, .alone = alone});
      }
    }
    const char* const nodes = info.conditionals == Conditionals::kSwitch ? "SWITCH" : "IF";
    return {std::move(plan), std::string("conditional graphs with ") + nodes + " nodes (" + versions + ")"};
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kDeviceLost) throw;
    return {nullptr, error.what()};
  }
}

}  // namespace trt_moe::cuda
