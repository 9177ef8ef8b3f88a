#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace trt_moe {

// The batch sizes an engine is compiled for, ascending, the smallest being 1.
class Buckets {
 public:
  // Throws Error(kInput) unless `sizes` starts with 1 and is strictly ascending.
  explicit Buckets(std::vector<std::size_t> sizes);

  std::span<const std::size_t> sizes() const noexcept { return sizes_; }
  std::size_t largest() const noexcept { return sizes_.back(); }

  // Largest bucket that `images` fill completely (images >= 1).
  std::size_t filled_by(std::size_t images) const noexcept;

 private:
  std::vector<std::size_t> sizes_;
};

// How many of `pending` images one of `workers` equal workers should take now: a fair share, so that no
// worker idles while another runs a long batch, cut down to a bucket that it fills.
std::size_t next_chunk(std::size_t pending, std::size_t workers, std::size_t max_batch,
                       const Buckets& buckets) noexcept;

}  // namespace trt_moe
