// Who answers where answers are due. Models sleep for as long as they are to take, far from what decides.
#include <doctest/doctest.h>

#include <algorithm>
#include <future>
#include <thread>

#include "device_routed_rig.h"
#include "two_experts.h"

using namespace trt_moe;
using namespace std::chrono_literals;
using std::chrono::milliseconds;
using testing::FakeEngine;
using testing::pixels_of;
using testing::predict_levels;
using testing::two_experts::Answers;
using testing::two_experts::kBright;
using testing::two_experts::kDark;
using testing::two_experts::kind_of;

namespace {

constexpr ImageShape kTiny = testing::two_experts::kShape;
constexpr std::uint8_t kUnsure = 80;  // goes to the cheap expert, which gives its likeliest class less than 0.9

std::shared_ptr<FakeEngine> slow(testing::FakeModel model, bool on_host, milliseconds takes,
                                 std::vector<std::size_t> buckets = {1}) {
  model.buckets = std::move(buckets);
  model.parallel = 1;
  model.on_host = on_host;
  auto engine = std::make_shared<FakeEngine>(std::move(model));
  engine->takes = takes;
  return engine;
}

// Its models are timed when it is made. With workers of their own, one each, or on the host with two for all.
struct DueRig {
  DueRig(bool on_host, milliseconds cheap_takes, milliseconds dear_takes, SchedulerOptions options = {},
         std::vector<std::size_t> gated_at_once = {1})
      : gater(slow(testing::gater_model(kTiny, 2), on_host, 0ms, std::move(gated_at_once))),
        cheap(slow(testing::expert_model(kTiny, 3, 0), on_host, cheap_takes)),
        dear(slow(testing::expert_model(kTiny, 3, 1), on_host, dear_takes)),
        scheduler(gater, {{"cheap", cheap, 0.5F}, {"dear", dear, 1.0F}}, options) {
    cheap->sizes.clear();
    dear->sizes.clear();
  }

  std::vector<std::int64_t> routes(const std::vector<std::uint8_t>& levels, std::chrono::nanoseconds limit) {
    return predict_levels<Answers>(scheduler, kTiny, levels, nullptr, limit).routes;
  }

  void submit(std::uint64_t ticket, std::uint8_t level, std::chrono::nanoseconds limit = kNoLimit) {
    scheduler.submit(ticket, pixels_of(kTiny, {level}).data(), CallTimes::within(limit));
  }

  // The expert of each submission, or what kept it from an answer.
  std::map<std::uint64_t, std::string> collect(std::size_t count) {
    return testing::collect(scheduler, count, [](const SubmittedRequest& request) {
      const std::optional<Failure> failure = request.failure();
      return failure ? failure->message : std::to_string(request.route());
    });
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
    DueRig rig(on_host, 100ms, 100ms);
    CHECK(kind_of([&] { rig.routes({kBright}, 40ms); }) == ErrorKind::kDeadline);
    CHECK(kind_of([&] { rig.routes({kDark, kBright, kDark}, 40ms); }) == ErrorKind::kDeadline);
    rig.submit(0, kDark, 40ms);
    const std::string said = rig.collect(1)[0];
    CHECK(said.find("an image was to be answered in 40 ms, and with ") == 0);
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
  DueRig rig(false, 0ms, 250ms);
  rig.dear->takes = 750ms;  // slower than it was
  rig.submit(0, kBright);
  std::this_thread::sleep_for(50ms);
  rig.submit(1, kBright, 1000ms);
  CHECK(rig.collect(2)[1] == "0");
  CHECK(rig.scheduler.stats().moved == 1);
}

TEST_CASE("while the router closes, such an image stays with the dear expert") {
  DueRig rig(false, 0ms, 250ms);
  rig.dear->takes = 750ms;
  rig.submit(0, kBright);
  std::this_thread::sleep_for(50ms);
  rig.submit(1, kBright, 1000ms);
  std::this_thread::sleep_for(50ms);
  rig.scheduler.close(false);
  CHECK(rig.collect(2)[1] == "1");
  CHECK(rig.scheduler.stats().moved == 0);
  CHECK(rig.scheduler.stats().missed == 0);
}

TEST_CASE("one that waited until nobody can answer it any more fails") {
  for (const bool on_host : {false, true}) {
    CAPTURE(on_host);
    DueRig rig(on_host, 0ms, 100ms);
    rig.dear->takes = 750ms;
    const std::size_t busy = on_host ? 2 : 1;
    for (std::size_t i = 0; i < busy; ++i) rig.submit(i, kBright);
    std::this_thread::sleep_for(50ms);
    rig.submit(9, kBright, 500ms);
    CHECK(rig.collect(busy + 1)[9].find("which were over before its turn came") != std::string::npos);
  }
}

TEST_CASE("what waits for an expert counts: it takes as many images as it can answer in time") {
  for (const bool on_host : {true, false}) {
    CAPTURE(on_host);
    DueRig rig(on_host, 0ms, 100ms);
    // None is done before all are routed, and then all are so soon that nothing is chosen again.
    rig.dear->takes = 0ms;
    rig.dear->gate.shut();
    auto answers =
        std::async(std::launch::async, [&] { return rig.routes(std::vector<std::uint8_t>(16, kBright), 600ms); });
    std::this_thread::sleep_for(100ms);
    rig.dear->gate.open();
    const Routes routes = answers.get();
    const auto dear = std::count(routes.begin(), routes.end(), 1);
    CHECK(dear >= 2);
    CHECK(dear <= (on_host ? 11 : 6));
  }
}

TEST_CASE("a worker that is free counts as free, however much was run before") {
  DueRig rig(true, 0ms, 200ms);
  CHECK(rig.routes(std::vector<std::uint8_t>(30, kDark), kNoLimit) == Routes(30, 0));
  rig.submit(0, kBright);
  std::this_thread::sleep_for(50ms);
  rig.submit(1, kBright, 270ms);
  CHECK(rig.collect(2) == std::map<std::uint64_t, std::string>{{0, "1"}, {1, "1"}});
}

TEST_CASE("the first images of a call leave room for the others, which come to the same workers") {
  for (const std::size_t max_batch : {64U, 6U}) {
    CAPTURE(max_batch);
    SchedulerOptions options;
    options.max_batch = max_batch;
    DueRig rig(true, 20ms, 100ms, options);
    // All on the cheap expert take 20 * 20 / 2 = 200 ms, a few on the dear one as well; each of these that is in time
    // by itself would leave none for the last ones.
    const Routes routes = rig.routes(std::vector<std::uint8_t>(20, kBright), 600ms);
    const auto dear = std::count(routes.begin(), routes.end(), 1);
    CHECK(dear >= 1);
    CHECK(dear <= 9);
  }
}

TEST_CASE("an expert that takes longer than it did leaves the rest of a call to the cheap one") {
  DueRig rig(true, 20ms, 100ms);
  rig.dear->takes = 160ms;
  CHECK(rig.routes(std::vector<std::uint8_t>(20, kBright), 800ms).size() == 20);
}

TEST_CASE("an expert that has become slow leaves the many images that wait for it the time that the cheap one needs") {
  // All that are under way are to go to the dear expert, which becomes two and a half times as slow. Of 200, which
  // would take 2000 ms, it has answered 100 after 2500; the others need 400 on the cheap one. Of 50, it has answered
  // all after 1250; the 150 that are handed in later need 600.
  for (const auto& [max_batch, limit] : {std::pair{200U, 2600ms}, std::pair{100U, 1500ms}}) {
    CAPTURE(max_batch);
    SchedulerOptions options;
    options.max_batch = max_batch;
    DueRig rig(true, 8ms, 20ms, options);
    rig.dear->takes = 50ms;
    const Routes routes = rig.routes(std::vector<std::uint8_t>(200, kBright), limit);
    CHECK(std::count(routes.begin(), routes.end(), 1) > 10);
  }
}

TEST_CASE("a call that fails runs no more of its images") {
  for (const std::size_t max_batch : {64U, 8U}) {
    CAPTURE(max_batch);
    SchedulerOptions options;
    options.max_batch = max_batch;
    DueRig rig(true, 50ms, 100ms, options);
    CHECK(kind_of([&] { rig.routes(std::vector<std::uint8_t>(64, kDark), 300ms); }) == ErrorKind::kDeadline);
    CHECK(rig.cheap->sizes.size() < 16);
    // Of those that are under way, of 16 parts.
    CHECK(rig.scheduler.stats().missed >= 1);
    CHECK(rig.scheduler.stats().missed <= (max_batch == 64 ? 1 : 3));
  }
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

TEST_CASE("second looks leave the images that are handed in later their time") {
  SchedulerOptions options;
  options.verify_below = 0.9F;
  options.max_batch = 4;
  for (const bool on_host : {true, false}) {
    CAPTURE(on_host);
    DueRig rig(on_host, 20ms, 60ms, options);
    // All first looks take 400 ms on the host and 800 elsewhere, all second ones three times as long.
    const Routes routes = rig.routes(std::vector<std::uint8_t>(40, kUnsure), on_host ? 800ms : 1600ms);
    const auto second = std::count(routes.begin(), routes.end(), 1);
    CHECK(second >= 1);
    CHECK(second < 30);
  }
}

TEST_CASE("images that are handed in later do not wait for a second look that there is no time for") {
  SchedulerOptions options;
  options.verify_below = 0.9F;
  options.max_batch = 2;
  DueRig rig(false, 20ms, 300ms, options);
  rig.submit(0, kBright);
  std::this_thread::sleep_for(20ms);
  // They take 600 ms; the first second look would wait 300 of the 750 until it is left out.
  CHECK(rig.routes(std::vector<std::uint8_t>(30, kUnsure), 750ms) == Routes(30, 0));
}

TEST_CASE("a lone image leaves those that follow it in other calls what the cheap expert needs") {
  SchedulerOptions options;
  options.verify_below = 0.9F;
  DueRig rig(true, 50ms, 100ms, options);
  const auto route = [&](std::uint8_t level, std::size_t later) {
    const std::vector<std::uint8_t> image = pixels_of(kTiny, {level});
    Answers answers(1);
    rig.scheduler.predict({image.data(), 1, kTiny.bytes()}, answers.rows(), nullptr, nullptr,
                          CallTimes::within(400ms).before(later));
    return answers.routes[0];
  };
  CHECK(route(kBright, 0) == 1);
  CHECK(route(kBright, 2) == 1);  // 100 ms and 2 * 50 with slack
  CHECK(route(kBright, 7) == 0);  // 100 ms and 7 * 50 with slack are too much
  CHECK(route(kUnsure, 2) == 1);  // of what the first look leaves, 350 ms: 100 and 2 * 50
  CHECK(route(kUnsure, 7) == 0);
}

TEST_CASE("a second look that waited too long leaves the first one's answer") {
  SchedulerOptions options;
  options.verify_below = 0.9F;
  DueRig rig(false, 0ms, 250ms, options);
  rig.dear->takes = 750ms;
  rig.submit(0, kBright);
  std::this_thread::sleep_for(50ms);
  rig.submit(1, kUnsure, 1000ms);
  CHECK(rig.collect(2)[1] == "0");
  CHECK(rig.scheduler.stats().images == std::vector<std::uint64_t>{1, 1});
  CHECK(rig.scheduler.stats().passed_on == std::vector<std::uint64_t>{1, 0});
  CHECK(rig.scheduler.stats().stages.back().count == 2);
}

TEST_CASE("a submitted image with a deadline does not wait for company") {
  SchedulerOptions options;
  options.max_wait = std::chrono::hours(1);
  DueRig rig(true, 0ms, 0ms, options, {1, 8});
  rig.submit(0, kDark, 20s);
  const auto patience = Clock::now() + 20s;
  while (rig.scheduler.stats().images[0] == 0 && Clock::now() < patience) std::this_thread::sleep_for(10ms);
  CHECK(rig.scheduler.stats().images[0] == 1);
  rig.scheduler.close(false);  // what waits for company all the same is answered now
  CHECK(rig.collect(1)[0] == "0");
}

TEST_CASE("an expert that was slow for a while is tried again, be it wanted first, second or for a second look") {
  SchedulerOptions options;
  options.verify_below = 0.9F;
  for (const bool submitted : {false, true}) {
    CAPTURE(submitted);
    DueRig rig(true, 20ms, 20ms, options);
    const auto route = [&](std::uint8_t level, std::chrono::nanoseconds limit) {
      if (!submitted) return std::to_string(rig.routes({level}, limit)[0]);
      rig.submit(0, level, limit);
      return rig.collect(1)[0];
    };
    const auto due = [&](std::uint8_t level, std::chrono::nanoseconds limit) -> std::string {
      try {
        return route(level, limit);
      } catch (const Error& error) {
        CHECK(error.kind() == ErrorKind::kDeadline);
        return error.what();
      }
    };
    const auto becomes = [&](const std::string& expert, std::uint8_t level, std::chrono::nanoseconds limit) {
      const auto patience = Clock::now() + 60s;
      while (due(level, limit) != expert && Clock::now() < patience) std::this_thread::sleep_for(20ms);
      return Clock::now() < patience;
    };
    rig.dear->takes = 250ms;
    for (int i = 0; i < 3; ++i) CHECK(route(kBright, kNoLimit) == "1");
    rig.dear->takes = 20ms;
    CHECK(route(kUnsure, 150ms) == "0");
    CHECK(becomes("1", kUnsure, 150ms));
    rig.dear->takes = 250ms;
    for (int i = 0; i < 3; ++i) route(kBright, kNoLimit);
    rig.cheap->takes = 300ms;
    for (int i = 0; i < 6; ++i) route(kDark, kNoLimit);
    CHECK(due(kBright, 100ms).size() > 1);  // an error
    rig.cheap->takes = 20ms;
    // Only the dear expert is asked for, which stays slow; the cheap one could stand in.
    CHECK(becomes("0", kBright, 100ms));
  }
}

TEST_CASE("a second look by mirror does not wait for the first one") {
  SchedulerOptions options;
  options.verify_below = 0.9F;
  options.verify_by = VerifyBy::kMirror;
  DueRig rig(false, 200ms, 200ms, options);
  rig.submit(0, kUnsure, 550ms);
  CHECK(rig.collect(1)[0] == "0");
  CHECK(rig.scheduler.stats().passed_on == std::vector<std::uint64_t>{1, 0});
}

TEST_CASE("without timings first, every expert is taken for fast enough until it has run") {
  SchedulerOptions options;
  options.warmup = false;
  DueRig rig(true, 0ms, 300ms, options);
  CHECK(rig.routes({kBright}, 100ms) == Routes{1});
  CHECK(rig.routes({kBright}, 100ms) == Routes{0});
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
    return predict_levels<testing::Answers>(rig.scheduler, testing::kShape, levels, nullptr, limit).routes;
  };
  is_slow = true;
  rig.scheduler.set_latency_weight(0.5F);
  CHECK(routes({5}, kNoLimit) == Routes{0});
  CHECK(routes({5}, 30s) == Routes{0});
  CHECK(routes({5}, 150ms) == Routes{1});
  CHECK(routes({250}, 150ms) == Routes{2});
  CHECK(routes({250, 5}, 30s) == Routes{2, 0});
  CHECK(rig.scheduler.stats().missed == 0);
  CHECK(kind_of([&] { routes({5}, 1ns); }) == ErrorKind::kDeadline);
  CHECK(rig.scheduler.stats().missed == 1);
  CHECK(routes({5}, kNoLimit) == Routes{0});
}

TEST_CASE("on the device each part of a call makes the second looks that its share of the time has room for") {
  SchedulerOptions options;
  options.max_batch = 4;
  options.verify_by = VerifyBy::kMirror;
  testing::FakeModel cheap = testing::expert_model(testing::kShape, testing::kClasses, 0);
  cheap.compute = [compute = cheap.compute](auto image, auto logits) {
    std::this_thread::sleep_for(20ms);
    compute(image, logits);
  };
  testing::Rig rig(testing::FakeStreamDevice::some_gpu(), options,
                   testing::gater_model(testing::kShape, testing::kExperts), cheap);
  rig.route_on_device();
  rig.scheduler.set_verify_below(1.0F);
  // Of 600 ms each of the five parts has 120, of which its first looks take 80.
  const auto answer = predict_levels<testing::Answers>(rig.scheduler, testing::kShape, std::vector<std::uint8_t>(20, 5),
                                                       nullptr, 600ms);
  CHECK(answer.routes == Routes(20, 0));
  CHECK(rig.scheduler.stats().passed_on[0] >= 1);
  CHECK(rig.scheduler.stats().passed_on[0] <= 14);
}

TEST_CASE("a cheapest expert that began beside the gater is that much nearer to its answer") {
  const auto slow = [](testing::FakeModel model) {
    model.compute = [compute = model.compute](auto image, auto logits) {
      std::this_thread::sleep_for(200ms);
      compute(image, logits);
    };
    model.buckets = {1};
    return model;
  };
  SchedulerOptions options;
  options.speculate = true;
  testing::Rig rig(testing::FakeStreamDevice::some_gpu(), options,
                   slow(testing::gater_model(testing::kShape, testing::kExperts)),
                   slow(testing::expert_model(testing::kShape, testing::kClasses, 0)));
  const auto answer = predict_levels<testing::Answers>(rig.scheduler, testing::kShape, {5}, nullptr, 320ms);
  CHECK(answer.routes == Routes{0});
}
