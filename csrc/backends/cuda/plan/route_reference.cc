#include "backends/cuda/plan/route_reference.h"

#include <algorithm>

#include "core/error.h"
#include "core/route_plan.h"

namespace trt_moe::cuda {

RoutedBatch route_reference(std::span<const float> logits, std::span<const float> costs, float latency_weight,
                            std::size_t capacity, const std::vector<std::vector<std::size_t>>& buckets) {
  const std::size_t experts = costs.size();
  const std::size_t images = logits.size() / std::max<std::size_t>(experts, 1);
  if (experts == 0 || buckets.size() != experts || images > capacity || logits.size() != images * experts) {
    throw Error(ErrorKind::kInput, std::to_string(logits.size()) + " logits of " + std::to_string(experts) +
                                       " experts with buckets for " + std::to_string(buckets.size()) +
                                       "; expected whole rows of at most " + std::to_string(capacity) + " images");
  }
  RoutedBatch batch;
  batch.counts.assign(experts, 0);
  batch.rows.assign(experts * capacity, -1);
  for (std::size_t image = 0; image < images; ++image) {
    const std::uint32_t route = choose_route(logits.subspan(image * experts, experts), costs, latency_weight);
    batch.routes.push_back(route == kNoRoute ? -1 : static_cast<std::int32_t>(route));
    if (route == kNoRoute) continue;
    std::int32_t& count = batch.counts[route];
    batch.rows[route * capacity + static_cast<std::size_t>(count)] = static_cast<std::int32_t>(image);
    ++count;
  }
  for (std::size_t expert = 0; expert < experts; ++expert) {
    const auto count = static_cast<std::size_t>(batch.counts[expert]);
    const std::vector<std::size_t>& sizes = buckets[expert];
    const auto holding = count == 0 ? sizes.end() : std::lower_bound(sizes.begin(), sizes.end(), count);
    batch.buckets.push_back(static_cast<std::int32_t>(holding - sizes.begin()));
  }
  return batch;
}

}  // namespace trt_moe::cuda
