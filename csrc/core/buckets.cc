#include "core/buckets.h"

#include <algorithm>
#include <functional>
#include <string>

#include "core/error.h"

namespace trt_moe {

Buckets::Buckets(std::vector<std::size_t> sizes, Batching batching) : sizes_(std::move(sizes)), batching_(batching) {
  const bool ascending = std::adjacent_find(sizes_.begin(), sizes_.end(), std::greater_equal<>()) == sizes_.end();
  if (sizes_.empty() || sizes_.front() != 1 || !ascending) {
    std::string found;
    for (const std::size_t size : sizes_) found.append(found.empty() ? "" : ",").append(std::to_string(size));
    throw Error(ErrorKind::kInput,
                "buckets are [" + found + "]; expected ascending batch sizes that start with 1, like 1,4,16");
  }
}

std::size_t Buckets::filled_by(std::size_t images) const noexcept {
  if (batching_ == Batching::kPadded) return std::min(std::max<std::size_t>(images, 1), largest());
  return *std::prev(std::upper_bound(sizes_.begin(), sizes_.end(), std::max<std::size_t>(images, 1)));
}

std::size_t Buckets::holding(std::size_t images) const noexcept {
  return static_cast<std::size_t>(std::lower_bound(sizes_.begin(), sizes_.end(), images) - sizes_.begin());
}

std::size_t next_chunk(std::size_t pending, std::size_t workers, std::size_t max_batch,
                       const Buckets& buckets) noexcept {
  const std::size_t share = (pending + workers - 1) / workers;
  return buckets.filled_by(std::min(share, max_batch));
}

}  // namespace trt_moe
