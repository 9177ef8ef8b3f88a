#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace trt_moe {

// What becomes of a batch that is no bucket: a CPU gains nothing from images that nobody asked for, so there it
// runs as several batches that are; a GPU runs a padded one faster than two.
enum class Batching { kExact, kPadded };

// The batch sizes an engine is compiled for, ascending, the smallest being 1.
class Buckets {
 public:
  // Throws Error(kInput) unless `sizes` starts with 1 and is strictly ascending.
  explicit Buckets(std::vector<std::size_t> sizes, Batching batching = Batching::kExact);

  std::span<const std::size_t> sizes() const noexcept { return sizes_; }
  std::size_t largest() const noexcept { return sizes_.back(); }

  // How many of `images` run together next (images >= 1): the largest bucket that they fill completely, or where
  // batches are padded as many as the largest bucket holds.
  std::size_t filled_by(std::size_t images) const noexcept;

  // Index of the smallest bucket that holds `images` (1 to the largest bucket).
  std::size_t holding(std::size_t images) const noexcept;

 private:
  std::vector<std::size_t> sizes_;
  Batching batching_;
};

// How many of `pending` images one of `workers` equal workers should take now: a fair share, so that no
// worker idles while another runs a long batch, cut down to a bucket that it fills.
std::size_t next_chunk(std::size_t pending, std::size_t workers, std::size_t max_batch,
                       const Buckets& buckets) noexcept;

}  // namespace trt_moe
