#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace trt_moe {

inline constexpr std::uint32_t kNoRoute = std::numeric_limits<std::uint32_t>::max();

// Which expert each image takes, and the images grouped by expert.
struct RoutePlan {
  std::vector<std::uint32_t> routes;   // [images]: index of the expert, kNoRoute where a logit is not finite
  std::vector<std::uint32_t> sources;  // image indices grouped by expert, input order kept within a group
  std::vector<std::uint32_t> offsets;  // [experts + 1]: group e is sources[offsets[e] .. offsets[e + 1])

  std::span<const std::uint32_t> group(std::size_t expert) const noexcept {
    return std::span(sources).subspan(offsets[expert], offsets[expert + 1] - offsets[expert]);
  }
};

// argmax_k(logits[k] - latency_weight * costs[k]); ties go to the lower index, the cheaper expert.
// kNoRoute when a logit is not finite.
std::uint32_t choose_route(std::span<const float> logits, std::span<const float> costs, float latency_weight) noexcept;

// The same of the experts that take no longer than `left`; kNoRoute also when none is left.
std::uint32_t choose_route_in_time(std::span<const float> logits, std::span<const float> costs, float latency_weight,
                                   std::span<const std::chrono::nanoseconds> takes,
                                   std::chrono::nanoseconds left) noexcept;

// Choosing and grouping in one. logits: [images * experts], row-major. Images without a route are in no group. Storage
// in `plan` is reused, so a warm plan allocates nothing.
void plan_routes(std::span<const float> logits, std::span<const float> costs, float latency_weight, RoutePlan& plan);

// Groups the images by the routes that `plan` has.
void group_by_route(std::size_t experts, RoutePlan& plan);

}  // namespace trt_moe
