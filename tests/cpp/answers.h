// What a scheduler answers to images of one brightness each.
#pragma once

#include <cstddef>
#include <cstdint>
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
                       void (*poll)()) {
  const std::vector<std::uint8_t> images = pixels_of(shape, levels);
  Answers answers(levels.size());
  scheduler.predict({images.data(), levels.size(), shape.bytes()}, answers.rows(), poll);
  return answers;
}

}  // namespace trt_moe::testing
