#include "core/run_times.h"

#include <algorithm>
#include <cmath>

namespace trt_moe {

namespace {

constexpr float kMeanGain = 1.0F / 8;
constexpr float kDeviationGain = 1.0F / 4;
constexpr float kDeviations = 4.0F;
// A run counts for no more than so many times what was expected: one that was held up tells little of the next.
constexpr float kMostAtOnce = 2.0F;
// An estimate that is eased again and again loses 63 % of what it has above the floor in this time,
constexpr std::chrono::duration<float> kEasesIn{0.3F};
// the floor 63 % of itself in this,
constexpr std::chrono::duration<float> kFloorEasesIn{10.0F};
// and the time between two eases counts for no more than this.
constexpr std::chrono::duration<float> kLongestStep{0.25F};

float microseconds(std::chrono::nanoseconds time) { return std::chrono::duration<float, std::micro>(time).count(); }

std::chrono::nanoseconds nanoseconds(float us) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double, std::micro>(us));
}

}  // namespace

void RunTime::record(std::chrono::nanoseconds took, Clock::time_point at) noexcept {
  const float us = std::max(microseconds(took), 0.001F);
  Estimate estimate = estimate_.load(std::memory_order_relaxed);
  Floor floor = floor_.load(std::memory_order_relaxed);
  if (estimate.mean_us == 0.0F) {
    estimate.mean_us = us;
    floor.us = us;
  } else {
    const float most = kMostAtOnce * (estimate.mean_us + kDeviations * estimate.deviation_us);
    const float counted = std::min(us, most);
    const float error = counted - estimate.mean_us;
    estimate.mean_us += kMeanGain * error;
    estimate.deviation_us += kDeviationGain * (std::abs(error) - estimate.deviation_us);
    floor.us = std::min(counted, floor.us + kMeanGain * (counted - floor.us));
  }
  floor.left = 1.0F;
  estimate_.store(estimate, std::memory_order_relaxed);
  floor_.store(floor, std::memory_order_relaxed);
  touched_.store(at, std::memory_order_relaxed);
}

std::chrono::nanoseconds RunTime::expected() const noexcept {
  const Estimate estimate = estimate_.load(std::memory_order_relaxed);
  return nanoseconds(estimate.mean_us + kDeviations * estimate.deviation_us);
}

std::chrono::nanoseconds RunTime::mean() const noexcept {
  return nanoseconds(estimate_.load(std::memory_order_relaxed).mean_us);
}

void RunTime::ease(Clock::time_point at) noexcept {
  Estimate estimate = estimate_.load(std::memory_order_relaxed);
  if (estimate.mean_us == 0.0F) return;
  const std::chrono::duration<float> passed = at - touched_.exchange(at, std::memory_order_relaxed);
  const auto step = std::clamp(passed, std::chrono::duration<float>(0), kLongestStep);
  Floor floor = floor_.load(std::memory_order_relaxed);
  floor.left *= std::exp(-step / kFloorEasesIn);
  floor_.store(floor, std::memory_order_relaxed);
  const float least = std::min(floor.us * floor.left, estimate.mean_us);
  const float kept = std::exp(-step / kEasesIn);
  estimate.mean_us = least + kept * (estimate.mean_us - least);
  estimate.deviation_us *= kept;
  estimate_.store(estimate, std::memory_order_relaxed);
}

void RunTimes::record(std::size_t images, std::chrono::nanoseconds took, Clock::time_point at) noexcept {
  of_bucket_[buckets_.holding(images)].record(took, at);
  per_image_.record(took / static_cast<std::int64_t>(images), at);
}

std::chrono::nanoseconds RunTimes::expected(std::size_t images) const noexcept {
  return of_bucket_[buckets_.holding(images)].expected();
}

std::chrono::nanoseconds RunTimes::mean(std::size_t images) const noexcept {
  return of_bucket_[buckets_.holding(images)].mean();
}

void RunTimes::ease(std::size_t images, Clock::time_point at) noexcept {
  of_bucket_[buckets_.holding(images)].ease(at);
}

}  // namespace trt_moe
