#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace trt_moe::cuda {

// What the route kernel writes for one batch.
struct RoutedBatch {
  std::vector<std::int32_t> routes;   // [images], -1 where a logit is not finite
  std::vector<std::int32_t> counts;   // [experts]
  std::vector<std::int32_t> rows;     // [experts * capacity]: each expert's images in input order, then unspecified
  std::vector<std::int32_t> buckets;  // [experts]: index of the smallest bucket that holds its images, their
                                      // number where it has none
};

// The route kernel's twin on the CPU, for tests and for the kernel to be compared with; the routes are those of
// plan_routes. logits: [images * experts]; buckets: each expert's, ascending, the largest holding `capacity`.
RoutedBatch route_reference(std::span<const float> logits, std::span<const float> costs, float latency_weight,
                            std::size_t capacity, const std::vector<std::vector<std::size_t>>& buckets);

}  // namespace trt_moe::cuda
