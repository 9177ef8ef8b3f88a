#include <doctest/doctest.h>

#include <chrono>
#include <cmath>
#include <limits>
#include <vector>

#include "core/route_plan.h"

using trt_moe::choose_route;
using trt_moe::choose_route_in_time;
using trt_moe::kNoRoute;
using trt_moe::plan_routes;
using trt_moe::RoutePlan;
using Indices = std::vector<std::uint32_t>;

TEST_CASE("the latency weight moves an image from the dear to the cheap expert") {
  const std::vector<float> logits{1.0F, 2.0F};
  const std::vector<float> costs{0.1F, 1.0F};
  CHECK(choose_route(logits, costs, 0.0F) == 1);
  CHECK(choose_route(logits, costs, 1.0F) == 1);
  CHECK(choose_route(logits, costs, 1.2F) == 0);
}

TEST_CASE("a tie goes to the lower index") {
  CHECK(choose_route(std::vector<float>{3.0F, 3.0F, 3.0F}, std::vector<float>{0.5F, 0.5F, 0.5F}, 1.0F) == 0);
}

TEST_CASE("negative logits are compared, not clipped") {
  CHECK(choose_route(std::vector<float>{-5.0F, -4.0F}, std::vector<float>{0.0F, 0.0F}, 0.0F) == 1);
}

TEST_CASE("a logit that is not finite gives no route") {
  const std::vector<float> costs{0.1F, 1.0F};
  CHECK(choose_route(std::vector<float>{0.0F, std::nanf("")}, costs, 0.0F) == kNoRoute);
  CHECK(choose_route(std::vector<float>{std::numeric_limits<float>::infinity(), 0.0F}, costs, 0.0F) == kNoRoute);
}

TEST_CASE("in time the best of those that are, by the same rule") {
  using Ms = std::chrono::milliseconds;
  const std::vector<float> logits{1.0F, 2.0F, 4.0F};
  const std::vector<float> costs{0.1F, 0.5F, 1.0F};
  const std::vector<std::chrono::nanoseconds> takes{Ms(1), Ms(5), Ms(20)};
  const auto in = [&](Ms left, float weight) { return choose_route_in_time(logits, costs, weight, takes, left); };
  CHECK(in(Ms(20), 0.0F) == 2);
  CHECK(in(Ms(19), 0.0F) == 1);
  CHECK(in(Ms(5), 0.0F) == 1);
  CHECK(in(Ms(4), 0.0F) == 0);
  CHECK(in(Ms(0), 0.0F) == kNoRoute);
  CHECK(in(Ms(-1), 0.0F) == kNoRoute);
  CHECK(in(Ms(19), 10.0F) == 0);
  const std::vector<float> broken{1.0F, 2.0F, std::nanf("")};
  CHECK(choose_route_in_time(broken, costs, 0.0F, takes, Ms(1)) == kNoRoute);
}

TEST_CASE("images are grouped by expert in input order") {
  const std::vector<float> logits{0, 1, 1, 0, 0, 1, 1, 0, 0, 1};  // experts 1 0 1 0 1
  RoutePlan plan;
  plan_routes(logits, std::vector<float>{0.0F, 0.0F}, 0.0F, plan);
  CHECK(plan.routes == Indices{1, 0, 1, 0, 1});
  CHECK(plan.sources == Indices{1, 3, 0, 2, 4});
  CHECK(plan.offsets == Indices{0, 2, 5});
  CHECK(plan.group(0).size() == 2);
  CHECK(plan.group(1)[0] == 0);
}

TEST_CASE("an image without a route is in no group") {
  const std::vector<float> logits{0, 1, std::nanf(""), 0, 1, 0};
  RoutePlan plan;
  plan_routes(logits, std::vector<float>{0.0F, 0.0F}, 0.0F, plan);
  CHECK(plan.routes == Indices{1, kNoRoute, 0});
  CHECK(plan.sources == Indices{2, 0});
  CHECK(plan.offsets == Indices{0, 1, 2});
}

TEST_CASE("an expert that nobody takes has an empty group, and a reused plan forgets the last batch") {
  RoutePlan plan;
  plan_routes(std::vector<float>{1, 0, 0, 0, 0, 1}, std::vector<float>{0, 0, 0}, 0.0F, plan);
  CHECK(plan.offsets == Indices{0, 1, 1, 2});
  plan_routes(std::vector<float>{0, 1, 0}, std::vector<float>{0, 0, 0}, 0.0F, plan);
  CHECK(plan.routes == Indices{1});
  CHECK(plan.sources == Indices{0});
  CHECK(plan.offsets == Indices{0, 0, 1, 1});
}
