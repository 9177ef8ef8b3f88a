#include "core/route_plan.h"

#include <cmath>

namespace trt_moe {

namespace {

template <typename Allowed>
std::uint32_t best_of(std::span<const float> logits, std::span<const float> costs, float latency_weight,
                      const Allowed& allowed) noexcept {
  std::uint32_t best = kNoRoute;
  float best_score = 0.0F;
  for (std::uint32_t expert = 0; expert < costs.size(); ++expert) {
    if (!std::isfinite(logits[expert])) return kNoRoute;
    if (!allowed(expert)) continue;
    const float score = logits[expert] - latency_weight * costs[expert];
    if (best == kNoRoute || score > best_score) {
      best = expert;
      best_score = score;
    }
  }
  return best;
}

}  // namespace

std::uint32_t choose_route(std::span<const float> logits, std::span<const float> costs, float latency_weight) noexcept {
  return best_of(logits, costs, latency_weight, [](std::uint32_t) { return true; });
}

std::uint32_t choose_route_in_time(std::span<const float> logits, std::span<const float> costs, float latency_weight,
                                   std::span<const std::chrono::nanoseconds> takes,
                                   std::chrono::nanoseconds left) noexcept {
  return best_of(logits, costs, latency_weight, [&](std::uint32_t expert) { return takes[expert] <= left; });
}

void plan_routes(std::span<const float> logits, std::span<const float> costs, float latency_weight, RoutePlan& plan) {
  const std::size_t experts = costs.size();
  plan.routes.resize(logits.size() / experts);
  for (std::size_t image = 0; image < plan.routes.size(); ++image) {
    plan.routes[image] = choose_route(logits.subspan(image * experts, experts), costs, latency_weight);
  }
  group_by_route(experts, plan);
}

void group_by_route(std::size_t experts, RoutePlan& plan) {
  plan.offsets.assign(experts + 1, 0);
  for (const std::uint32_t route : plan.routes) {
    if (route != kNoRoute) ++plan.offsets[route + 1];
  }
  for (std::size_t expert = 0; expert < experts; ++expert) plan.offsets[expert + 1] += plan.offsets[expert];
  plan.sources.resize(plan.offsets[experts]);
  // A counting sort that walks each group's start forward, then shifts the starts back, needs no second array.
  for (std::uint32_t image = 0; image < plan.routes.size(); ++image) {
    const std::uint32_t route = plan.routes[image];
    if (route != kNoRoute) plan.sources[plan.offsets[route]++] = image;
  }
  for (std::size_t expert = experts; expert > 0; --expert) plan.offsets[expert] = plan.offsets[expert - 1];
  plan.offsets[0] = 0;
}

}  // namespace trt_moe
