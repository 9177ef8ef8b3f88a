// Who answers where answers are due. Models sleep for as long as they are to take, far from what decides.
#include <doctest/doctest.h>

#include <algorithm>
#include <thread>

#include "device_routed_rig.h"
#include "two_experts.h"

using namespace trt_moe;
using namespace std::chrono_literals;
using std::chrono::milliseconds;
using testing::FakeEngine;
using testing::pixels_of;
using testing::two_experts::Answers;
using testing::two_experts::kBright;
using testing::two_experts::kDark;
using testing::two_experts::kind_of;

namespace {

constexpr ImageShape kTiny = testing::two_experts::kShape;
constexpr std::uint8_t kUnsure = 80;  // goes to the cheap expert, which gives its likeliest class less than 0.9

std::shared_ptr<FakeEngine> slow(testing::FakeModel model, bool on_host, milliseconds takes) {
  model.buckets = {1};
  model.parallel = 1;
  model.on_host = on_host;
  auto engine = std::make_shared<FakeEngine>(std::move(model));
  engine->takes = takes;
  return engine;
}

// Its models are timed when it is made. With workers of their own, one each, or on the host with two for all.
struct DueRig {
  DueRig(bool on_host, milliseconds cheap_takes, milliseconds dear_takes, SchedulerOptions options = {})
      : gater(slow(testing::gater_model(kTiny, 2), on_host, 0ms)),
        cheap(slow(testing::expert_model(kTiny, 3, 0), on_host, cheap_takes)),
        dear(slow(testing::expert_model(kTiny, 3, 1), on_host, dear_takes)),
        scheduler(gater, {{"cheap", cheap, 0.5F}, {"dear", dear, 1.0F}}, options) {
    cheap->sizes.clear();
    dear->sizes.clear();
  }

  std::vector<std::int64_t> routes(const std::vector<std::uint8_t>& levels, std::chrono::nanoseconds limit) {
    const std::vector<std::uint8_t> images = pixels_of(kTiny, levels);
    Answers answers(levels.size());
    scheduler.predict({images.data(), levels.size(), kTiny.bytes()}, answers.rows(), nullptr, nullptr, limit);
    return answers.routes;
  }

  void submit(std::uint64_t ticket, std::uint8_t level, std::chrono::nanoseconds limit = kNoLimit) {
    scheduler.submit(ticket, pixels_of(kTiny, {level}).data(), limit);
  }

  // The expert of each submission, or what kept it from an answer.
  std::map<std::uint64_t, std::string> collect(std::size_t count) {
    std::map<std::uint64_t, std::string> outcomes;
    std::vector<SubmittedRequest*> done;
    while (outcomes.size() < count) {
      scheduler.take_completed(done);
      for (SubmittedRequest* request : done) {
        const std::optional<Failure> failure = request->failure();
        outcomes[request->ticket()] = failure ? failure->message : std::to_string(request->route());
        scheduler.recycle(request);
      }
    }
    return outcomes;
  }

  std::shared_ptr<FakeEngine> gater;
  std::shared_ptr<FakeEngine> cheap;
  std::shared_ptr<FakeEngine> dear;
  Scheduler scheduler;
};

using Routes = std::vector<std::int64_t>;

}  // namespace

TEST_CASE("the dear expert answers where there is time for it, and the cheap one where there is not") {
  for (const bool on_host : {true, false}) {
    CAPTURE(on_host);
    DueRig rig(on_host, 0ms, 200ms);
    CHECK(rig.routes({kBright}, 10s) == Routes{1});
    CHECK(rig.routes({kBright}, 100ms) == Routes{0});
    CHECK(rig.routes({kBright}, kNoLimit) == Routes{1});
    CHECK(rig.routes({kDark, kBright}, 10s) == Routes{0, 1});
    CHECK(rig.routes({kDark, kBright}, 100ms) == Routes{0, 0});
    rig.submit(0, kBright, 10s);
    rig.submit(1, kBright, 100ms);
    CHECK(rig.collect(2) == std::map<std::uint64_t, std::string>{{0, "1"}, {1, "0"}});
    CHECK(rig.scheduler.stats().moved == 3);
    CHECK(rig.scheduler.stats().missed == 0);
    CHECK(rig.scheduler.stats().images == std::vector<std::uint64_t>{5, 4});
  }
}

TEST_CASE("what no expert can answer in time fails at once, and costs none of them a run") {
  for (const bool on_host : {true, false}) {
    CAPTURE(on_host);
    DueRig rig(on_host, 300ms, 600ms);
    CHECK(kind_of([&] { rig.routes({kBright}, 100ms); }) == ErrorKind::kDeadline);
    CHECK(kind_of([&] { rig.routes({kDark, kBright, kDark}, 100ms); }) == ErrorKind::kDeadline);
    rig.submit(0, kDark, 100ms);
    const std::string said = rig.collect(1)[0];
    CHECK(said.find("an image was to be answered in 100 ms, and with ") == 0);
    CHECK(said.find(" ms left no expert could be done in time; allow more time") != std::string::npos);
    CHECK(kind_of([&] { rig.routes({kBright}, 1ns); }) == ErrorKind::kDeadline);
    CHECK(kind_of([&] { rig.routes({kBright, kDark}, 1ns); }) == ErrorKind::kDeadline);
    CHECK(rig.cheap->sizes.empty());
    CHECK(rig.dear->sizes.empty());
    CHECK(rig.scheduler.stats().missed == 5);
    CHECK(rig.scheduler.stats().in_flight == 0);
  }
}

TEST_CASE("an image that waited too long for the dear expert is answered by the cheap one") {
  for (const bool on_host : {false, true}) {
    CAPTURE(on_host);
    DueRig rig(on_host, 0ms, 400ms);
    // It is slower than it was; two of the host's workers share all.
    rig.dear->takes = 1000ms;
    const std::size_t busy = on_host ? 2 : 1;
    for (std::size_t i = 0; i < busy; ++i) rig.submit(i, kBright);
    std::this_thread::sleep_for(50ms);
    rig.submit(9, kBright, 1300ms);
    CHECK(rig.collect(busy + 1)[9] == "0");
    CHECK(rig.scheduler.stats().moved == 1);
  }
}

TEST_CASE("one that waited until nobody can answer it any more fails") {
  DueRig rig(false, 0ms, 100ms);
  rig.dear->takes = 800ms;
  rig.submit(0, kBright);
  std::this_thread::sleep_for(50ms);
  rig.submit(1, kBright, 400ms);
  CHECK(rig.collect(2)[1].find("which were over before its turn came") != std::string::npos);
}

TEST_CASE("what waits for an expert counts: it takes as many images as it can answer in time") {
  DueRig rig(true, 0ms, 100ms);
  const Routes routes = rig.routes(std::vector<std::uint8_t>(12, kBright), 400ms);
  const auto dear = std::count(routes.begin(), routes.end(), 1);
  CHECK(dear >= 2);
  CHECK(dear <= 8);
}

TEST_CASE("the first images of a call leave room for the others, which come to the same workers") {
  DueRig rig(true, 20ms, 100ms);
  // All on the cheap expert take 20 * 20 / 2 = 200 ms, a few on the dear one as well; each of these that is in time by
  // itself would leave none for the last ones.
  const Routes routes = rig.routes(std::vector<std::uint8_t>(20, kBright), 450ms);
  const auto dear = std::count(routes.begin(), routes.end(), 1);
  CHECK(dear >= 1);
  CHECK(dear <= 6);
}

TEST_CASE("a call that fails runs no more of its images") {
  DueRig rig(true, 50ms, 100ms);
  CHECK(kind_of([&] { rig.routes(std::vector<std::uint8_t>(64, kDark), 300ms); }) == ErrorKind::kDeadline);
  CHECK(rig.cheap->sizes.size() < 16);
  CHECK(rig.scheduler.stats().missed == 1);
}

TEST_CASE("a second look that would come too late is left out") {
  SchedulerOptions options;
  options.verify_below = 0.9F;
  for (const bool on_host : {true, false}) {
    CAPTURE(on_host);
    DueRig rig(on_host, 0ms, 200ms, options);
    CHECK(rig.routes({kUnsure}, 10s) == Routes{1});
    CHECK(rig.routes({kUnsure, kUnsure}, 10s) == Routes{1, 1});
    CHECK(rig.scheduler.stats().passed_on == std::vector<std::uint64_t>{3, 0});
    CHECK(rig.routes({kUnsure}, 100ms) == Routes{0});
    CHECK(rig.routes({kUnsure, kUnsure}, 100ms) == Routes{0, 0});
    CHECK(rig.scheduler.stats().passed_on == std::vector<std::uint64_t>{3, 0});
    CHECK(rig.scheduler.stats().images == std::vector<std::uint64_t>{3, 3});
  }
}

TEST_CASE("a second look that waited too long leaves the first one's answer") {
  SchedulerOptions options;
  options.verify_below = 0.9F;
  DueRig rig(false, 0ms, 400ms, options);
  rig.dear->takes = 1000ms;
  rig.submit(0, kBright);
  std::this_thread::sleep_for(50ms);
  rig.submit(1, kUnsure, 1300ms);
  CHECK(rig.collect(2)[1] == "0");
  CHECK(rig.scheduler.stats().images == std::vector<std::uint64_t>{1, 1});
  CHECK(rig.scheduler.stats().passed_on == std::vector<std::uint64_t>{1, 0});
  CHECK(rig.scheduler.stats().stages.back().count == 2);
}

TEST_CASE("a submitted image with a deadline does not wait for company") {
  SchedulerOptions options;
  options.max_wait = std::chrono::hours(1);
  DueRig rig(true, 0ms, 0ms, options);
  rig.submit(0, kDark, 20s);
  CHECK(rig.collect(1)[0] == "0");
}

TEST_CASE("an expert that was slow for a while is tried again") {
  DueRig rig(true, 0ms, 20ms);
  rig.dear->takes = 300ms;
  for (int i = 0; i < 6; ++i) CHECK(rig.routes({kBright}, kNoLimit) == Routes{1});
  rig.dear->takes = 20ms;
  CHECK(rig.routes({kBright}, 200ms) == Routes{0});
  const auto patience = Clock::now() + 60s;
  while (rig.routes({kBright}, 200ms) == Routes{0}) {
    REQUIRE(Clock::now() < patience);
    std::this_thread::sleep_for(20ms);
  }
}

TEST_CASE("on the device the route is taken among those in time, by how long runs with each expert took") {
  std::atomic<bool> is_slow{false};
  testing::FakeModel cheap = testing::expert_model(testing::kShape, testing::kClasses, 0);
  cheap.compute = [compute = cheap.compute, &is_slow](auto image, auto logits) {
    if (is_slow) std::this_thread::sleep_for(300ms);
    compute(image, logits);
  };
  testing::Rig rig(testing::FakeStreamDevice::some_gpu(), {}, testing::gater_model(testing::kShape, testing::kExperts),
                   cheap);
  rig.route_on_device();
  const auto routes = [&](const std::vector<std::uint8_t>& levels, std::chrono::nanoseconds limit) {
    const std::vector<std::uint8_t> images = pixels_of(testing::kShape, levels);
    testing::Answers answers(levels.size());
    rig.scheduler.predict({images.data(), levels.size(), testing::kShape.bytes()}, answers.rows(), nullptr, nullptr,
                          limit);
    return answers.routes;
  };
  is_slow = true;
  rig.scheduler.set_latency_weight(0.5F);
  CHECK(routes({5}, kNoLimit) == Routes{0});
  CHECK(routes({5}, 30s) == Routes{0});
  CHECK(routes({5}, 20ms) == Routes{1});
  CHECK(routes({250}, 20ms) == Routes{2});
  CHECK(routes({250, 5}, 30s) == Routes{2, 0});
  CHECK(rig.scheduler.stats().missed == 0);
  CHECK(kind_of([&] { routes({5}, 1ns); }) == ErrorKind::kDeadline);
  CHECK(rig.scheduler.stats().missed == 1);
  CHECK(routes({5}, kNoLimit) == Routes{0});
}
