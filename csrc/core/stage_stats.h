#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "core/histogram.h"

namespace trt_moe {

// What an image's time goes into. A batch's gate, gather, expert and scatter times count for each of its images.
enum class Stage : std::uint8_t { kGate, kQueue, kGather, kExpert, kScatter, kTotal };

inline constexpr std::array<std::string_view, 6> kStageNames{"gate", "queue", "gather", "expert", "scatter", "total"};

// Written by one thread.
class StageRecorder {
 public:
  void record(Stage stage, std::uint64_t ns) noexcept { histograms_[static_cast<std::size_t>(stage)].record(ns); }
  HistogramSnapshot snapshot(std::size_t stage) const noexcept { return histograms_[stage].snapshot(); }

 private:
  std::array<Histogram, kStageNames.size()> histograms_;
};

}  // namespace trt_moe
