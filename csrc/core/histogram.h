#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace trt_moe {

// Latencies in nanoseconds, in log-linear bins: 32 a factor of two, so a quantile is at most 3.2 % off.
struct HistogramSnapshot {
  static constexpr std::size_t kSubBins = 32;
  static constexpr std::size_t kBins = 40 * kSubBins;

  std::array<std::uint64_t, kBins> bins{};
  std::uint64_t count = 0;
  std::uint64_t sum_ns = 0;
  std::uint64_t min_ns = std::numeric_limits<std::uint64_t>::max();
  std::uint64_t max_ns = 0;

  void merge(const HistogramSnapshot& other) noexcept;
  // Upper edge of the bin that holds the q-quantile, never above the largest value seen; 0 when empty.
  double quantile_ns(double q) const noexcept;
  // How many took at most so long, or a bin's width longer.
  std::uint64_t at_most(std::uint64_t ns) const noexcept;
  double mean_ns() const noexcept {
    return count == 0 ? 0.0 : static_cast<double>(sum_ns) / static_cast<double>(count);
  }

  static std::size_t bin_of(std::uint64_t ns) noexcept;
  static std::uint64_t upper_edge(std::size_t bin) noexcept;
};

// One thread records, any thread takes a snapshot. With a single writer a plain load and store is enough,
// so recording costs no locked instruction.
class Histogram {
 public:
  void record(std::uint64_t ns) noexcept;
  HistogramSnapshot snapshot() const noexcept;

 private:
  std::array<std::atomic<std::uint64_t>, HistogramSnapshot::kBins> bins_{};
  std::atomic<std::uint64_t> sum_ns_{0};
  std::atomic<std::uint64_t> min_ns_{std::numeric_limits<std::uint64_t>::max()};
  std::atomic<std::uint64_t> max_ns_{0};
};

}  // namespace trt_moe
