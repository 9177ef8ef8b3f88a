#include "core/histogram.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace trt_moe {

namespace {
constexpr int kSubBits = std::countr_zero(HistogramSnapshot::kSubBins);
}

std::size_t HistogramSnapshot::bin_of(std::uint64_t ns) noexcept {
  if (ns < kSubBins) return static_cast<std::size_t>(ns);
  const int shift = static_cast<int>(std::bit_width(ns)) - 1 - kSubBits;
  const std::size_t bin = (static_cast<std::size_t>(shift) + 1) * kSubBins + ((ns >> shift) - kSubBins);
  return std::min(bin, kBins - 1);
}

std::uint64_t HistogramSnapshot::upper_edge(std::size_t bin) noexcept {
  if (bin < kSubBins) return bin;
  const std::size_t shift = bin / kSubBins - 1;
  return ((kSubBins + bin % kSubBins + 1) << shift) - 1;
}

void HistogramSnapshot::merge(const HistogramSnapshot& other) noexcept {
  for (std::size_t bin = 0; bin < kBins; ++bin) bins[bin] += other.bins[bin];
  count += other.count;
  sum_ns += other.sum_ns;
  min_ns = std::min(min_ns, other.min_ns);
  max_ns = std::max(max_ns, other.max_ns);
}

double HistogramSnapshot::quantile_ns(double q) const noexcept {
  if (count == 0) return 0.0;
  const auto rank = static_cast<std::uint64_t>(std::ceil(std::clamp(q, 0.0, 1.0) * static_cast<double>(count)));
  std::uint64_t seen = 0;
  for (std::size_t bin = 0; bin < kBins; ++bin) {
    seen += bins[bin];
    if (seen >= std::max<std::uint64_t>(rank, 1))
      return static_cast<double>(std::clamp(upper_edge(bin), min_ns, max_ns));
  }
  return static_cast<double>(max_ns);
}

std::uint64_t HistogramSnapshot::at_most(std::uint64_t ns) const noexcept {
  return std::accumulate(bins.begin(), bins.begin() + static_cast<std::ptrdiff_t>(bin_of(ns)) + 1, std::uint64_t{0});
}

void Histogram::record(std::uint64_t ns) noexcept {
  // The bin comes last and is released: a snapshot that counts this value also sees the extremes it set.
  sum_ns_.store(sum_ns_.load(std::memory_order_relaxed) + ns, std::memory_order_relaxed);
  if (ns < min_ns_.load(std::memory_order_relaxed)) min_ns_.store(ns, std::memory_order_relaxed);
  if (ns > max_ns_.load(std::memory_order_relaxed)) max_ns_.store(ns, std::memory_order_relaxed);
  std::atomic<std::uint64_t>& bin = bins_[HistogramSnapshot::bin_of(ns)];
  bin.store(bin.load(std::memory_order_relaxed) + 1, std::memory_order_release);
}

HistogramSnapshot Histogram::snapshot() const noexcept {
  HistogramSnapshot copy;
  for (std::size_t bin = 0; bin < HistogramSnapshot::kBins; ++bin) {
    copy.bins[bin] = bins_[bin].load(std::memory_order_acquire);
    copy.count += copy.bins[bin];
  }
  copy.sum_ns = sum_ns_.load(std::memory_order_relaxed);
  copy.min_ns = min_ns_.load(std::memory_order_relaxed);
  copy.max_ns = max_ns_.load(std::memory_order_relaxed);
  return copy;
}

}  // namespace trt_moe
