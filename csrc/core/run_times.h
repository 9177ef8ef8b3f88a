#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <vector>

#include "core/buckets.h"
#include "core/call_times.h"

namespace trt_moe {

// How long runs of one kind take, learnt from those that were. Thread-safe without a lock: of two records at the same
// time one may count for nothing.
class RunTime {
 public:
  void record(std::chrono::nanoseconds took, Clock::time_point at) noexcept;

  // What the next run hardly exceeds: the running mean and four mean deviations (Jacobson, "Congestion Avoidance and
  // Control", 1988), to which a run adds at most twice what was expected of it. 0: nothing is known.
  std::chrono::nanoseconds expected() const noexcept;
  std::chrono::nanoseconds mean() const noexcept;

  // A run was not made as it would have taken too long. Then no run corrects the estimate either, so each of these
  // brings it nearer to the fastest of the last runs, which takes a second, and that nearer to nothing, which takes
  // ten: in the end one is tried again.
  void ease(Clock::time_point at) noexcept;

 private:
  struct Estimate {
    float mean_us = 0.0F;
    float deviation_us = 0.0F;
  };
  struct Floor {
    float us = 0.0F;
    float left = 1.0F;  // of it, after the eases since the last run
  };
  std::atomic<Estimate> estimate_{};
  std::atomic<Floor> floor_{};
  std::atomic<Clock::time_point> touched_{};

  static_assert(std::atomic<Estimate>::is_always_lock_free && std::atomic<Floor>::is_always_lock_free);
};

// Of one model's runs: of each batch size, and for an image's share of one.
class RunTimes {
 public:
  explicit RunTimes(const Buckets& buckets) : buckets_(buckets), of_bucket_(buckets.sizes().size()) {}

  void record(std::size_t images, std::chrono::nanoseconds took, Clock::time_point at) noexcept;
  // See RunTime.
  std::chrono::nanoseconds expected(std::size_t images) const noexcept;
  std::chrono::nanoseconds mean(std::size_t images) const noexcept;
  std::chrono::nanoseconds per_image() const noexcept { return per_image_.mean(); }
  void ease(std::size_t images, Clock::time_point at) noexcept;

 private:
  Buckets buckets_;
  std::vector<RunTime> of_bucket_;
  RunTime per_image_;
};

}  // namespace trt_moe
