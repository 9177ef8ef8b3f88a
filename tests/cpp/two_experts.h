// A router of two toy experts on the CPU.
#pragma once

#include <doctest/doctest.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "answers.h"
#include "core/error.h"
#include "core/scheduler.h"
#include "fake_backend.h"

namespace trt_moe::testing::two_experts {

using testing::fake_expert;
using testing::fake_gater;
using testing::FakeEngine;
using testing::FakeModel;

constexpr ImageShape kShape{2, 2, 1};
constexpr std::uint8_t kDark = 20;     // goes to expert 0
constexpr std::uint8_t kBright = 230;  // goes to expert 1

using Answers = AnswersOf<2, 3>;

struct Rig {
  explicit Rig(SchedulerOptions options = {}) : Rig(options, fake_gater(kShape, 2), fake_expert(kShape, 3, 0)) {}
  Rig(SchedulerOptions options, std::shared_ptr<FakeEngine> gater_engine, std::shared_ptr<FakeEngine> cheap_engine)
      : Rig(options, std::move(gater_engine), std::move(cheap_engine), fake_expert(kShape, 3, 1)) {}
  // With models on the host, which share workers: two for each of `parallel`.
  Rig(SchedulerOptions options, std::size_t parallel)
      : Rig(options, on_host(gater_model(kShape, 2), parallel), on_host(expert_model(kShape, 3, 0), parallel),
            on_host(expert_model(kShape, 3, 1), parallel)) {}
  Rig(SchedulerOptions options, std::shared_ptr<FakeEngine> gater_engine, std::shared_ptr<FakeEngine> cheap_engine,
      std::shared_ptr<FakeEngine> dear_engine)
      : gater(std::move(gater_engine)),
        cheap(std::move(cheap_engine)),
        dear(std::move(dear_engine)),
        scheduler(gater, {{"cheap", cheap, 0.5F}, {"dear", dear, 1.0F}}, without_warmup(options)) {}

  static Rig of(bool shared_workers, SchedulerOptions options = {}) {
    if (shared_workers) return Rig(options, 1);
    return Rig(options);
  }

  static std::shared_ptr<FakeEngine> on_host(FakeModel model, std::size_t parallel) {
    model.parallel = parallel;
    model.on_host = true;
    return std::make_shared<FakeEngine>(std::move(model));
  }

  static SchedulerOptions without_warmup(SchedulerOptions options) {
    options.warmup = false;
    return options;
  }

  Answers predict(const std::vector<std::uint8_t>& levels, void (*poll)() = nullptr) {
    return predict_levels<Answers>(scheduler, kShape, levels, poll);
  }

  void submit(std::uint64_t ticket, std::uint8_t level) { scheduler.submit(ticket, pixels_of(kShape, {level}).data()); }

  // Outcomes of `count` submissions by ticket: "" or the error's text.
  std::map<std::uint64_t, std::string> collect(std::size_t count) {
    return testing::collect(scheduler, count, [](const SubmittedRequest& request) {
      return request.failure() ? request.failure()->message : std::string();
    });
  }

  std::shared_ptr<FakeEngine> gater;
  std::shared_ptr<FakeEngine> cheap;
  std::shared_ptr<FakeEngine> dear;
  Scheduler scheduler;
};

inline ErrorKind kind_of(const std::function<void()>& act) {
  try {
    act();
  } catch (const Error& error) {
    return error.kind();
  }
  FAIL("nothing was thrown");
  return ErrorKind::kInput;
}

}  // namespace trt_moe::testing::two_experts
