#include "backends/cuda/device_output.h"

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

#include "backends/cuda/plan/routed_graph.h"

namespace trt_moe::cuda {

namespace {

constexpr const char* kAnswersOnDevice = "answers on the device";

// Blocks that nobody holds are kept for so many answers; what a caller held at its peak would stay for ever otherwise.
constexpr std::size_t kIdle = 8;
// A block this many times too large waits for larger answers.
constexpr std::size_t kWaste = 4;

}  // namespace

// Freeing waits for the device, and a caller may let go of answers anywhere, under a lock of its own: `take` frees.
class DeviceOutputs::Pool {
 public:
  explicit Pool(std::shared_ptr<StreamDevice> device) : device_(std::move(device)) {}

  std::unique_ptr<Buffer> take(std::size_t bytes) {
    std::vector<std::unique_ptr<Buffer>> surplus;  // freed without the lock
    {
      const std::lock_guard lock(mutex_);
      const auto serves = [&](const auto& each) { return each->size() >= bytes && each->size() <= kWaste * bytes; };
      const auto found = std::find_if(idle_.begin(), idle_.end(), serves);
      std::unique_ptr<Buffer> buffer;
      if (found != idle_.end()) {
        buffer = std::move(*found);
        idle_.erase(found);
      }
      // The oldest go.
      const std::size_t most = buffer ? kIdle : kIdle - 1;
      while (idle_.size() > most) {
        bytes_ -= idle_.front()->size();
        surplus.push_back(std::move(idle_.front()));
        idle_.erase(idle_.begin());
      }
      if (buffer) return buffer;
    }
    surplus.clear();
    std::unique_ptr<Buffer> buffer = allocate_for(*device_, kAnswersOnDevice, MemoryKind::kDevice, bytes);
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
  std::vector<std::unique_ptr<Buffer>> idle_;  // the longest unused first
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
          // Answers may outlive the router, which then no one gives them back to.
          std::shared_ptr<void>(buffer.release(), [pool = std::weak_ptr<Pool>(pool_)](void* held) {
            std::unique_ptr<Buffer> answers(static_cast<Buffer*>(held));
            if (const auto here = pool.lock()) here->give_back(std::move(answers));
          })};
}

}  // namespace trt_moe::cuda
