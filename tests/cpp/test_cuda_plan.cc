// The CUDA backend's pure functions.
#include <doctest/doctest.h>

#include <limits>
#include <random>
#include <vector>

#include "backends/cuda/plan/arena_plan.h"
#include "backends/cuda/plan/gater_net.h"
#include "backends/cuda/plan/graph_topology.h"
#include "backends/cuda/plan/route_reference.h"
#include "backends/cuda/plan/routed_graph.h"
#include "backends/cuda/plan/versions.h"
#include "core/error.h"
#include "core/route_plan.h"

using namespace trt_moe;
using namespace trt_moe::cuda;
using Ints = std::vector<std::int32_t>;

TEST_CASE("one SWITCH an expert, with a body for each of its buckets") {
  const std::vector<Node> expected{
      {NodeKind::kCopyIn, {}},
      {NodeKind::kGater, {0}},
      {NodeKind::kRoute, {1}},
      {NodeKind::kSwitch, {2}, -1, -1, 0, -1},
      {NodeKind::kGather, {}, 3, 0, 0, 0},
      {NodeKind::kExpert, {4}, 3, 0, 0, 0},
      {NodeKind::kScatter, {5}, 3, 0, 0, 0},
      {NodeKind::kSwitch, {2}, -1, -1, 1, -1},
      {NodeKind::kGather, {}, 7, 0, 1, 0},
      {NodeKind::kExpert, {8}, 7, 0, 1, 0},
      {NodeKind::kScatter, {9}, 7, 0, 1, 0},
      {NodeKind::kGather, {}, 7, 1, 1, 1},
      {NodeKind::kExpert, {11}, 7, 1, 1, 1},
      {NodeKind::kScatter, {12}, 7, 1, 1, 1},
  };
  CHECK(graph_topology({1, 2}, 2, Conditionals::kSwitch) == expected);
}

TEST_CASE("for a single image one SWITCH, with a body for each expert, to which the route kernel takes it") {
  const std::vector<Node> expected{
      {NodeKind::kCopyIn, {}},
      {NodeKind::kGater, {0}},
      {NodeKind::kRouteImage, {1}},
      {NodeKind::kSwitch, {2}, -1, -1, -1, -1},
      {NodeKind::kExpert, {}, 3, 0, 0, 0},
      {NodeKind::kScatter, {4}, 3, 0, 0, 0},
      {NodeKind::kExpert, {}, 3, 1, 1, 0},
      {NodeKind::kScatter, {6}, 3, 1, 1, 0},
  };
  CHECK(graph_topology({1, 1}, 1, Conditionals::kSwitch) == expected);
}

TEST_CASE("for a single image the first expert may run beside the gater, and the conditionals are of the others") {
  const std::vector<Node> with_switch{
      {NodeKind::kCopyIn, {}},
      {NodeKind::kGater, {0}},
      {NodeKind::kRouteImage, {1}},
      {NodeKind::kCopyImage, {0}, -1, -1, 0, 0},
      {NodeKind::kExpert, {3}, -1, -1, 0, 0},
      {NodeKind::kScatter, {2, 4}, -1, -1, 0, 0},
      {NodeKind::kSwitch, {2}, -1, -1, -1, -1},
      {NodeKind::kExpert, {}, 6, 0, 1, 0},
      {NodeKind::kScatter, {7}, 6, 0, 1, 0},
  };
  CHECK(graph_topology({1, 1}, 1, Conditionals::kSwitch, true) == with_switch);
  const std::vector<Node> with_ifs{
      {NodeKind::kCopyIn, {}},
      {NodeKind::kGater, {0}},
      {NodeKind::kRoute, {1}},
      {NodeKind::kCopyImage, {0}, -1, -1, 0, 0},
      {NodeKind::kExpert, {3}, -1, -1, 0, 0},
      {NodeKind::kScatter, {2, 4}, -1, -1, 0, 0},
      {NodeKind::kIf, {2}, -1, -1, 1, 0},
      {NodeKind::kGather, {}, 6, 0, 1, 0},
      {NodeKind::kExpert, {7}, 6, 0, 1, 0},
      {NodeKind::kScatter, {8}, 6, 0, 1, 0},
  };
  CHECK(graph_topology({1, 1}, 1, Conditionals::kIf, true) == with_ifs);
  CHECK(graph_topology({1, 1}, 2, Conditionals::kIf, true) == graph_topology({1, 1}, 2, Conditionals::kIf));
  CHECK(graph_topology({1}, 1, Conditionals::kIf, true) == graph_topology({1}, 1, Conditionals::kIf));
}

TEST_CASE("one IF an expert and bucket where there is no SWITCH") {
  const std::vector<Node> expected{
      {NodeKind::kCopyIn, {}},
      {NodeKind::kGater, {0}},
      {NodeKind::kRoute, {1}},
      {NodeKind::kIf, {2}, -1, -1, 0, 0},
      {NodeKind::kGather, {}, 3, 0, 0, 0},
      {NodeKind::kExpert, {4}, 3, 0, 0, 0},
      {NodeKind::kScatter, {5}, 3, 0, 0, 0},
      {NodeKind::kIf, {2}, -1, -1, 0, 1},
      {NodeKind::kGather, {}, 7, 0, 0, 1},
      {NodeKind::kExpert, {8}, 7, 0, 0, 1},
      {NodeKind::kScatter, {9}, 7, 0, 0, 1},
  };
  CHECK(graph_topology({2}, 2, Conditionals::kIf) == expected);
}

TEST_CASE("no graph without experts, buckets or conditional nodes") {
  CHECK_THROWS_AS(graph_topology({}, 1, Conditionals::kSwitch), Error);
  CHECK_THROWS_AS(graph_topology({1, 0}, 1, Conditionals::kIf), Error);
  CHECK_THROWS_WITH_AS(graph_topology({1}, 1, Conditionals::kNone), doctest::Contains("conditional"), Error);
}

TEST_CASE("the parts of the blocks lie one after the other, at multiples of 256 bytes") {
  const RoutedLayout expected{256, 512, 768, 768 + 4 * 300, 256, 512, 512 + 4 * 5 * 4};
  CHECK(routed_layout(4, 2, 5, 300) == expected);
  CHECK(routed_layout(1, 65, 5, 300).images == 256 + 256 + 512);
  CHECK(routed_layout(65, 1, 1, 1).gater_logits == 512);
}

TEST_CASE("a model's arena has its input where a routed graph's block has its images") {
  CHECK(arena_plan(4, 300, 2) == ArenaPlan{768, 768 + 1280, 768 + 1280 + 256});
  for (const std::size_t experts : {1U, 2U, 64U, 65U, 1000U}) {
    CHECK(arena_plan(16, 27, experts).input == routed_layout(16, experts, 10, 27).images);
  }
}

TEST_CASE("the route kernel's twin gives routes, counts, rows in input order and the smallest bucket") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> logits{0, 1, 1, 0, nan, 9, 0, 1, 0, 1};  // experts 1 0 none 1 1
  const RoutedBatch batch = route_reference(logits, std::vector<float>{0, 0}, 0.0F, 6, {{1, 4}, {1, 2, 8}});
  CHECK(batch.routes == Ints{1, 0, -1, 1, 1});
  CHECK(batch.counts == Ints{1, 3});
  CHECK(Ints(batch.rows.begin(), batch.rows.begin() + 1) == Ints{1});
  CHECK(Ints(batch.rows.begin() + 6, batch.rows.begin() + 9) == Ints{0, 3, 4});
  CHECK(batch.buckets == Ints{0, 2});
}

TEST_CASE("an expert that nobody takes runs none of its buckets") {
  const RoutedBatch batch = route_reference(std::vector<float>{1, 0}, std::vector<float>{0, 0}, 0.0F, 1, {{1}, {1, 4}});
  CHECK(batch.counts == Ints{1, 0});
  CHECK(batch.buckets == Ints{0, 2});
}

TEST_CASE("the route kernel's twin refuses what does not fit together") {
  const std::vector<float> logits{1, 0, 0};
  const std::vector<float> costs{0, 0};
  CHECK_THROWS_AS(route_reference(logits, costs, 0.0F, 4, {{1}, {1}}), Error);
  CHECK_THROWS_AS(route_reference(std::span(logits).first(2), costs, 0.0F, 0, {{1}, {1}}), Error);
  CHECK_THROWS_AS(route_reference(std::span(logits).first(2), costs, 0.0F, 1, {{1}}), Error);
  CHECK_THROWS_AS(route_reference({}, {}, 0.0F, 1, {}), Error);
}

TEST_CASE("the route kernel's twin equals the host's plan, whatever the logits") {
  std::mt19937 random(11);
  // Few values, so that ties, infinities and NaN are common.
  const std::vector<float> values{
      0.0F, 1.0F, 1.0F, -2.0F, 3.5F, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()};
  for (int round = 0; round < 300; ++round) {
    const std::size_t experts = 1 + random() % 5;
    const std::size_t images = 1 + random() % 20;
    std::vector<float> logits(images * experts);
    for (float& logit : logits) logit = values[random() % (round % 2 == 0 ? 5 : values.size())];
    std::vector<float> costs(experts);
    for (float& cost : costs) cost = static_cast<float>(random() % 4) / 4.0F;
    const float weight = static_cast<float>(random() % 5);
    RoutePlan plan;
    plan_routes(logits, costs, weight, plan);
    const RoutedBatch batch = route_reference(logits, costs, weight, 20, {experts, {1, 2, 4, 20}});
    for (std::size_t i = 0; i < images; ++i) {
      CHECK(batch.routes[i] == (plan.routes[i] == kNoRoute ? -1 : static_cast<std::int32_t>(plan.routes[i])));
    }
    for (std::size_t expert = 0; expert < experts; ++expert) {
      const auto group = plan.group(expert);
      REQUIRE(static_cast<std::size_t>(batch.counts[expert]) == group.size());
      CHECK(std::equal(group.begin(), group.end(), batch.rows.begin() + static_cast<std::ptrdiff_t>(expert * 20),
                       [](std::uint32_t a, std::int32_t b) { return static_cast<std::int32_t>(a) == b; }));
      const std::size_t n = group.size();
      CHECK(batch.buckets[expert] == (n == 0 ? 4 : n == 1 ? 0 : n == 2 ? 1 : n <= 4 ? 2 : 3));
    }
  }
}

TEST_CASE("driver and runtime decide together which conditional nodes there are") {
  CHECK(conditionals_of(12030, 13000) == Conditionals::kNone);
  CHECK(conditionals_of(12040, 12060) == Conditionals::kIf);
  CHECK(conditionals_of(12060, 12080) == Conditionals::kIf);
  CHECK(conditionals_of(12080, 12080) == Conditionals::kSwitch);
  CHECK(conditionals_of(13000, 12060) == Conditionals::kIf);
}

TEST_CASE("a driver older than the runtime is refused with both versions") {
  CHECK(version_text(12060) == "12.6");
  CHECK_NOTHROW(check_versions(13000, 13000));
  CHECK_NOTHROW(check_versions(12020, 12080));
  CHECK_NOTHROW(check_versions(13000, 12060));
  CHECK_THROWS_WITH_AS(check_versions(12080, 13010), doctest::Contains("CUDA 12.8"), Error);
  CHECK_THROWS_WITH_AS(check_versions(12080, 13010), doctest::Contains("CUDA 13.1"), Error);
  CHECK_THROWS_WITH_AS(check_versions(0, 13000), doctest::Contains("no NVIDIA driver"), Error);
}

TEST_CASE("a gater's kernels refuse what they would count wrongly") {
  const auto refusal = [](const cuda::GaterNet& net, std::size_t images) -> std::string {
    try {
      cuda::check_gater(net, images);
    } catch (const Error& error) {
      CHECK(error.kind() == ErrorKind::kInput);
      return error.what();
    }
    return "";
  };
  CHECK(refusal({{224, 224, 3}, 96, 96, true, 3}, 32).empty());
  CHECK(refusal({{6000, 4000, 3}, 96, 96, true, 3}, 32).empty());
  CHECK(refusal({{28, 28, 5}, 28, 28, false, 3}, 1).find("5 channels") != std::string::npos);
  CHECK(refusal({{28, 28, 1}, 28, 7, false, 3}, 1).find("28 x 7") != std::string::npos);
  CHECK(refusal({{28, 28, 1}, 28, 28, false, 1}, 1).find("1 experts") != std::string::npos);
  CHECK(refusal({{40000, 40000, 3}, 96, 96, true, 3}, 1).find("too large") != std::string::npos);
  CHECK(refusal({{8192, 8192, 4}, 8192, 8192, true, 3}, 64).find("too large") != std::string::npos);
  CHECK(refusal({{28, 28, 1}, 28, 28, false, 3}, 65536).find("too large") != std::string::npos);
}

TEST_CASE("a gater's counters of finished blocks lie before the output of its stem") {
  for (const std::size_t most : {1U, 65U, 300U}) {
    const cuda::GaterRun run = cuda::gater_run({{28, 28, 1}, 28, 28, false, 3}, most, 1U << 20, 0, 0, most);
    const auto at = [](const auto* pointer) { return reinterpret_cast<std::uintptr_t>(pointer); };
    CHECK(at(run.head.finished) + sizeof(std::uint32_t) * most <= at(run.stem.out));
  }
}
