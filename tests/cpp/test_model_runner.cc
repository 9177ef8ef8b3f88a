#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "core/model_runner.h"
#include "fake_backend.h"
#include "two_experts.h"

using namespace trt_moe;
using namespace trt_moe::testing::two_experts;

namespace {

struct CountsSessions final : Engine {
  explicit CountsSessions(std::shared_ptr<FakeEngine> of) : engine(std::move(of)) {}
  const EngineInfo& info() const override { return engine->info(); }
  std::unique_ptr<Session> open(Lane lane) override {
    ++opened;
    return engine->open(lane);
  }
  std::shared_ptr<FakeEngine> engine;
  std::atomic<int> opened{0};
};

}  // namespace

TEST_CASE("an error of any batch is the model's, and its sessions are used again") {
  const auto fake = fake_expert(kShape, 3, 0);
  const auto engine = std::make_shared<CountsSessions>(fake);
  ModelRunner runner(engine);
  const std::vector<std::uint8_t> images(67 * kShape.bytes(), kDark);
  std::vector<float> logits(67 * 3);
  for (const std::size_t count : {1U, 67U}) {
    const auto run = [&] { runner.logits({images.data(), count, kShape.bytes()}, logits.data(), nullptr); };
    fake->runs_to_fail = 1;
    CHECK(kind_of(run) == ErrorKind::kDevice);
    for (int i = 0; i < 5; ++i) run();
  }
  CHECK(engine->opened <= 3);  // one for a lone image, one for each of two threads
}

TEST_CASE("a model polls between batches, and times runs in milliseconds") {
  FakeModel slow = testing::expert_model(kShape, 3, 0);
  slow.compute = [](auto, auto logits) {
    std::this_thread::sleep_for(std::chrono::milliseconds(60));
    std::fill(logits.begin(), logits.end(), 0.0F);
  };
  slow.buckets = {1};
  ModelRunner runner(std::make_shared<FakeEngine>(slow));
  const std::vector<std::uint8_t> images(100 * kShape.bytes(), kDark);
  std::vector<float> logits(100 * 3);
  const auto interrupt = [] { throw std::runtime_error("interrupted"); };
  CHECK_THROWS_WITH(runner.logits({images.data(), 100, kShape.bytes()}, logits.data(), interrupt), "interrupted");
  std::vector<double> times(100);
  CHECK_THROWS_WITH(runner.time(images.data(), 0, times, interrupt), "interrupted");
  std::vector<double> two(2);
  runner.time(images.data(), 0, two, nullptr);
  for (const double ms : two) CHECK((ms >= 60.0 && ms < 6000.0));
}
