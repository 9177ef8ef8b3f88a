#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

namespace trt_moe {

using Clock = std::chrono::steady_clock;

inline constexpr std::chrono::nanoseconds kNoLimit = std::chrono::nanoseconds::max();

// When a call was made, and when its answers are due.
struct CallTimes {
  // Not explicit: without a deadline a call's times are its time.
  CallTimes(Clock::time_point made, Clock::time_point due = Clock::time_point::max())
      : submitted(made), deadline(due) {}

  // Made now, with so long for its answers.
  static CallTimes within(std::chrono::nanoseconds limit) {
    const Clock::time_point now = Clock::now();
    return limit == kNoLimit ? CallTimes(now) : CallTimes(now, now + limit);
  }

  // For a part of the call's images, which so many others follow.
  CallTimes before(std::size_t others) const noexcept {
    CallTimes part = *this;
    part.later += others;
    return part;
  }

  // When so many of the images are to be answered, for those that come later to have their share of what is left.
  Clock::time_point share(std::size_t images, Clock::time_point now) const noexcept {
    if (!has_deadline() || later == 0) return deadline;
    return now + (deadline - now) / static_cast<std::int64_t>(images + later) * static_cast<std::int64_t>(images);
  }

  bool has_deadline() const noexcept { return deadline != Clock::time_point::max(); }

  Clock::time_point submitted;
  Clock::time_point deadline;  // max: none
  std::size_t later = 0;       // images of the call that are handed in after these
};

}  // namespace trt_moe
