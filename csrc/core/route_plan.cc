#include "core/route_plan.h"

#include <cmath>

namespace trt_moe {

std::uint32_t choose_route(std::span<const float> logits, std::span<const float> costs, float latency_weight) noexcept {
  std::uint32_t best = kNoRoute;
  float best_score = 0.0F;
  for (std::uint32_t expert = 0; expert < costs.size(); ++expert) {
    if (!std::isfinite(logits[expert])) return kNoRoute;
    const float score = logits[expert] - latency_weight * costs[expert];
    if (best == kNoRoute || score > best_score) {
      best = expert;
      best_score = score;
    }
  }
  return best;
}

void plan_routes(std::span<const float> logits, std::span<const float> costs, float latency_weight, RoutePlan& plan) {
  const std::size_t experts = costs.size();
  const std::size_t images = logits.size() / experts;
  plan.routes.resize(images);
  plan.offsets.assign(experts + 1, 0);
  for (std::size_t image = 0; image < images; ++image) {
    const std::uint32_t route = choose_route(logits.subspan(image * experts, experts), costs, latency_weight);
    plan.routes[image] = route;
    if (route != kNoRoute) ++plan.offsets[route + 1];
  }
  for (std::size_t expert = 0; expert < experts; ++expert) plan.offsets[expert + 1] += plan.offsets[expert];
  plan.sources.resize(plan.offsets[experts]);
  // A counting sort that walks each group's start forward, then shifts the starts back, needs no second array.
  for (std::uint32_t image = 0; image < images; ++image) {
    const std::uint32_t route = plan.routes[image];
    if (route != kNoRoute) plan.sources[plan.offsets[route]++] = image;
  }
  for (std::size_t expert = experts; expert > 0; --expert) plan.offsets[expert] = plan.offsets[expert - 1];
  plan.offsets[0] = 0;
}

}  // namespace trt_moe
