#include "backends/cuda/device_output.h"

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

#include "backends/cuda/plan/routed_graph.h"

namespace trt_moe::cuda {

namespace {
constexpr const char* kName = "answers on the device";
}

class DeviceOutputs::Pool {
 public:
  explicit Pool(std::shared_ptr<StreamDevice> device) : device_(std::move(device)) {}

  std::unique_ptr<Buffer> take(std::size_t bytes) {
    std::unique_ptr<Buffer> too_small;  // freed without the lock: that waits for the device
    {
      const std::lock_guard lock(mutex_);
      const auto fits =
          std::find_if(idle_.begin(), idle_.end(), [&](const auto& each) { return each->size() >= bytes; });
      if (fits != idle_.end()) {
        std::unique_ptr<Buffer> buffer = std::move(*fits);
        idle_.erase(fits);
        return buffer;
      }
      // One that is too small will be for later batches too; the list stays as short as many are held at a time.
      if (!idle_.empty()) {
        too_small = std::move(idle_.back());
        idle_.pop_back();
        bytes_ -= too_small->size();
      }
    }
    too_small.reset();
    std::unique_ptr<Buffer> buffer = allocate_for(*device_, kName, MemoryKind::kDevice, bytes);
    const std::lock_guard lock(mutex_);
    bytes_ += buffer->size();
    return buffer;
  }

  void give_back(std::unique_ptr<Buffer> buffer) {
    const std::lock_guard lock(mutex_);
    idle_.push_back(std::move(buffer));
  }

  std::size_t bytes() {
    const std::lock_guard lock(mutex_);
    return bytes_;
  }

 private:
  std::shared_ptr<StreamDevice> device_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Buffer>> idle_;
  std::size_t bytes_ = 0;
};

DeviceOutputs::DeviceOutputs(std::shared_ptr<StreamDevice> device, std::size_t experts, std::size_t classes)
    : pool_(std::make_shared<Pool>(std::move(device))), experts_(experts), classes_(classes) {}

MemoryUse DeviceOutputs::memory_use() const { return {pool_->bytes(), 0}; }

DeviceOutputs::Rows DeviceOutputs::take(std::size_t images) {
  const RoutedLayout layout = routed_layout(images, experts_, classes_, 0);
  std::unique_ptr<Buffer> buffer = pool_->take(layout.out_bytes);
  const std::uintptr_t start = buffer->device();
  return {{start + layout.probabilities, start + layout.gater_logits, start},
          images,
          std::shared_ptr<void>(buffer.release(), [pool = pool_](void* held) {
            pool->give_back(std::unique_ptr<Buffer>(static_cast<Buffer*>(held)));
          })};
}

}  // namespace trt_moe::cuda
