// A router of three toy experts on the fake device, which can route there or on the host.
#pragma once

#include <doctest/doctest.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "answers.h"
#include "backends/cuda/device_routed_plan.h"
#include "core/error.h"
#include "core/scheduler.h"
#include "fake_captured_model.h"

namespace trt_moe::testing {

constexpr ImageShape kShape{2, 2, 1};
constexpr std::size_t kExperts = 3;
constexpr std::size_t kClasses = 5;

using Answers = AnswersOf<kExperts, kClasses>;

struct Rig {
  explicit Rig(cuda::DeviceInfo info = FakeStreamDevice::some_gpu(), SchedulerOptions options = {})
      : Rig(info, options, gater_model(kShape, kExperts), expert_model(kShape, kClasses, 0)) {}

  Rig(const cuda::DeviceInfo& info, const SchedulerOptions& options, const FakeModel& gater_of,
      const FakeModel& cheap_of, const std::string& dear_nodes = "kernel")
      : device(std::make_shared<FakeStreamDevice>(info)),
        gater(capture_model(device, "gater", gater_of)),
        experts{capture_model(device, "cheap", cheap_of), capture_model(device, "middle", middle()),
                capture_model(device, "dear", expert_model(kShape, kClasses, 2), dear_nodes)},
        scheduler(gater, scheduled(), options) {}

  std::vector<Expert> scheduled() const {
    return {{"cheap", experts[0], 0.2F}, {"middle", experts[1], 0.5F}, {"dear", experts[2], 1.0F}};
  }

  // Experts need not have the same buckets.
  static FakeModel middle() {
    FakeModel model = expert_model(kShape, kClasses, 1);
    model.buckets = {1, 2, 16};
    return model;
  }

  cuda::Routing choose(bool speculate = false) const {
    return cuda::choose_routing(gater, {experts.begin(), experts.end()}, speculate);
  }

  void route_on_device(bool speculate = false) {
    const cuda::Routing routing = choose(speculate);
    INFO(routing.reason);
    REQUIRE(routing.plan);
    scheduler.use(routing.plan);
  }

  Answers predict(const std::vector<std::uint8_t>& levels, void (*poll)() = nullptr) {
    return predict_levels<Answers>(scheduler, kShape, levels, poll);
  }

  std::shared_ptr<FakeStreamDevice> device;
  std::shared_ptr<cuda::GraphEngine> gater;
  std::vector<std::shared_ptr<cuda::GraphEngine>> experts;
  Scheduler scheduler;
};

inline std::vector<std::uint8_t> some_levels(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::uint8_t> levels(count);
  for (std::uint8_t& level : levels) level = static_cast<std::uint8_t>(random() % 256);
  return levels;
}

inline void check_same(const Answers& device, const Answers& host) {
  CHECK(device.routes == host.routes);
  CHECK(device.gater == host.gater);
  for (std::size_t i = 0; i < host.probabilities.size(); ++i) {
    CHECK(device.probabilities[i] == doctest::Approx(host.probabilities[i]).epsilon(1e-5));
  }
}

inline Failure failure_of(const std::function<void()>& act) {
  try {
    act();
  } catch (const Error& error) {
    return {error.kind(), error.what()};
  }
  FAIL("nothing was thrown");
  return {};
}

}  // namespace trt_moe::testing
