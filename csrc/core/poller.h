#pragma once

#include <chrono>

namespace trt_moe {

// How often a call that takes long looks whether it is to go on.
inline constexpr std::chrono::milliseconds kPollEvery{100};

// Calls `poll` that often, from a loop that comes by more often.
class Poller {
 public:
  explicit Poller(void (*poll)()) : poll_(poll) {}  // may be null

  void operator()() {
    if (poll_ == nullptr) return;
    const auto now = std::chrono::steady_clock::now();
    if (now < next_) return;
    next_ = now + kPollEvery;
    poll_();
  }

 private:
  void (*poll_)();
  std::chrono::steady_clock::time_point next_ = std::chrono::steady_clock::now() + kPollEvery;
};

}  // namespace trt_moe
