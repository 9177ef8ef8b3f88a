// What a scheduler answers to images of one brightness each.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/scheduler.h"

namespace trt_moe::testing {

template <std::size_t kExperts, std::size_t kClasses>
struct AnswersOf {
  explicit AnswersOf(std::size_t images)
      : probabilities(images * kClasses), gater(images * kExperts), routes(images, -1), latency(images) {}
  OutputRows rows() { return {probabilities.data(), gater.data(), routes.data(), latency.data()}; }
  std::vector<float> probabilities;
  std::vector<float> gater;
  std::vector<std::int64_t> routes;
  std::vector<float> latency;
};

inline std::vector<std::uint8_t> pixels_of(const ImageShape& shape, const std::vector<std::uint8_t>& levels) {
  std::vector<std::uint8_t> all;
  for (const std::uint8_t level : levels) all.insert(all.end(), shape.bytes(), level);
  return all;
}

template <typename Answers>
Answers predict_levels(Scheduler& scheduler, const ImageShape& shape, const std::vector<std::uint8_t>& levels,
                       void (*poll)() = nullptr, std::chrono::nanoseconds limit = kNoLimit) {
  const std::vector<std::uint8_t> images = pixels_of(shape, levels);
  Answers answers(levels.size());
  scheduler.predict({images.data(), levels.size(), shape.bytes()}, answers.rows(), poll, nullptr,
                    CallTimes::within(limit));
  return answers;
}

// What `text` makes of each of `count` submissions, by ticket; fewer where the scheduler is closed and drained.
template <typename Text>
std::map<std::uint64_t, std::string> collect(Scheduler& scheduler, std::size_t count, const Text& text) {
  std::map<std::uint64_t, std::string> outcomes;
  std::vector<SubmittedRequest*> done;
  while (outcomes.size() < count) {
    scheduler.take_completed(done);
    if (done.empty()) break;
    for (SubmittedRequest* request : done) {
      outcomes[request->ticket()] = text(*request);
      scheduler.recycle(request);
    }
  }
  return outcomes;
}

}  // namespace trt_moe::testing
