#pragma once

#include <atomic>
#include <cstdint>

namespace trt_moe::cuda {

// A mutex that is taken in the order of asking. Workers lock a model again the moment they let go of it, and a
// std::mutex lets them: somebody who waits for it may wait for seconds.
class FairMutex {
 public:
  void lock() noexcept {
    const std::uint32_t mine = next_.fetch_add(1, std::memory_order_relaxed);
    for (std::uint32_t now = serving_.load(std::memory_order_acquire); now != mine;
         now = serving_.load(std::memory_order_acquire)) {
      serving_.wait(now, std::memory_order_acquire);
    }
  }
  void unlock() noexcept {
    serving_.fetch_add(1, std::memory_order_release);
    serving_.notify_all();
  }

 private:
  std::atomic<std::uint32_t> next_{0};
  std::atomic<std::uint32_t> serving_{0};
};

}  // namespace trt_moe::cuda
