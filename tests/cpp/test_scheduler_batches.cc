// How the scheduler forms batches, holds places and counts what it did.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <future>
#include <set>
#include <thread>
#include <vector>

#include "two_experts.h"

using namespace trt_moe;
using namespace trt_moe::testing::two_experts;

namespace {

std::shared_ptr<FakeEngine> with_one_worker(FakeModel model) {
  model.parallel = 1;
  return std::make_shared<FakeEngine>(std::move(model));
}

// Takes so long for each image.
std::shared_ptr<FakeEngine> slow(std::size_t outputs, std::chrono::milliseconds time) {
  return with_one_worker({kShape, outputs, [time](auto image, auto logits) {
                            std::this_thread::sleep_for(time);
                            testing::score_position(testing::mean_brightness(image), 40.0, logits);
                          }});
}

}  // namespace

TEST_CASE("a batch that lost cancelled images runs in buckets that it fills") {
  for (const bool at_gater : {true, false}) {
    Rig rig({}, with_one_worker(testing::gater_model(kShape, 2)), fake_expert(kShape, 3, 0),
            with_one_worker(testing::expert_model(kShape, 3, 1)));
    FakeEngine& held = at_gater ? *rig.gater : *rig.dear;
    held.gate.shut();
    rig.submit(0, kBright);
    held.gate.wait_for_arrivals(1);
    static std::atomic<bool> cancelled;
    cancelled = false;
    // Two of four are cancelled while they wait.
    std::thread caller([&] {
      CHECK_THROWS(rig.predict({kBright, kBright}, [] {
        cancelled = true;
        throw std::runtime_error("interrupted");
      }));
    });
    while (!cancelled) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    for (std::uint64_t ticket = 1; ticket <= 2; ++ticket) rig.submit(ticket, kBright);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    held.gate.open();
    caller.join();
    for (const auto& [ticket, error] : rig.collect(3)) CHECK(error == "");
  }
}

TEST_CASE("a large predict holds max_batch places, and no line more than it has room for") {
  for (const std::size_t most : {4U, 1U}) {
    SchedulerOptions options;
    options.max_batch = most;
    options.max_queue = most;
    Rig rig(options);
    rig.gater->gate.shut();
    auto answers = std::async(std::launch::async, [&] { return rig.predict(std::vector<std::uint8_t>(11, kBright)); });
    rig.gater->gate.wait_for_arrivals(1);
    CHECK(rig.scheduler.stats().in_flight == most);
    rig.gater->gate.open();
    CHECK(answers.get().routes == std::vector<std::int64_t>(11, 1));
  }
  SchedulerOptions options;
  options.max_batch = 4;
  Rig rig(options);
  rig.gater->gate.shut();
  auto answers = std::async(std::launch::async, [&] { return rig.predict(std::vector<std::uint8_t>(30, kBright)); });
  rig.gater->gate.wait_for_arrivals(1);
  CHECK(rig.scheduler.stats().in_flight == 4);
  rig.gater->gate.open();
  answers.get();
}

TEST_CASE("submitted images wait max_wait for company, those of predict do not") {
  SchedulerOptions options;
  options.max_wait = std::chrono::hours(1);
  Rig rig(options, with_one_worker(testing::gater_model(kShape, 2)), fake_expert(kShape, 3, 0));
  for (std::uint64_t ticket = 0; ticket < 15; ++ticket) rig.submit(ticket, kDark);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  CHECK(rig.gater->sizes.empty());
  rig.submit(15, kDark);
  CHECK(rig.collect(16).size() == 16);
  CHECK(rig.gater->sizes == std::vector<std::size_t>{16});
  CHECK(rig.cheap->sizes == std::vector<std::size_t>{16});
  // Whoever is blocked takes along what waits.
  rig.submit(16, kDark);
  CHECK(rig.predict({kDark, kBright}).routes == std::vector<std::int64_t>{0, 1});
  rig.scheduler.close(false);
  CHECK(rig.collect(1).size() == 1);
}

TEST_CASE("no batch is larger than max_batch") {
  SchedulerOptions options;
  options.max_batch = 5;
  Rig rig(options, with_one_worker(testing::gater_model(kShape, 2)), fake_expert(kShape, 3, 0));
  rig.gater->gate.shut();
  for (std::uint64_t ticket = 0; ticket < 33; ++ticket) rig.submit(ticket, kDark);
  rig.gater->gate.open();
  CHECK(rig.collect(33).size() == 33);
  CHECK(*std::max_element(rig.gater->sizes.begin(), rig.gater->sizes.end()) == 4);
}

TEST_CASE("a submission's memory is used again") {
  Rig rig;
  std::set<SubmittedRequest*> seen;
  std::vector<SubmittedRequest*> done;
  for (std::uint64_t ticket = 0; ticket < 10; ++ticket) {
    rig.submit(ticket, kDark);
    rig.scheduler.take_completed(done);
    REQUIRE(done.size() == 1);
    seen.insert(done[0]);
    rig.scheduler.recycle(done[0]);
  }
  CHECK(seen.size() == 1);
}

TEST_CASE("warming up runs every model alone, and of each worker in every bucket, and then times them") {
  const auto gater = fake_gater(kShape, 2);
  const auto cheap = fake_expert(kShape, 3, 0);
  const auto dear = fake_expert(kShape, 3, 1);
  const Scheduler scheduler(gater, {{"cheap", cheap, 0.5F}, {"dear", dear, 1.0F}}, {});
  for (const auto& engine : {gater, cheap, dear}) {
    const auto begin = engine->sizes.begin();
    std::sort(begin, begin + 7);
    CHECK(std::vector<std::size_t>(begin, begin + 7) == std::vector<std::size_t>{1, 1, 1, 4, 4, 16, 16});
    CHECK(std::set<std::size_t>(begin + 7, engine->sizes.end()) == std::set<std::size_t>{1, 4, 16});
  }
}

TEST_CASE("as many workers warm up at once as will run at once, and what fails there fails the scheduler") {
  std::atomic<int> alone{0};
  std::atomic<int> inside{0};
  FakeModel meets = testing::expert_model(kShape, 3, 0);
  meets.buckets = {1};
  meets.on_host = true;
  meets.compute = [&](auto, auto) {
    if (alone++ == 0) return;  // of the lane for lone images
    ++inside;
    const auto late = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (inside < 2 && std::chrono::steady_clock::now() < late) std::this_thread::yield();
    throw Error(ErrorKind::kDevice, "met another and failed");
  };
  FakeModel gater = testing::gater_model(kShape, 1);
  gater.on_host = true;
  const auto start = [&] {
    return Scheduler(std::make_shared<FakeEngine>(gater), {{"only", std::make_shared<FakeEngine>(meets), 1.0F}}, {});
  };
  CHECK_THROWS_WITH(start(), "met another and failed");
  CHECK(inside == 2);
}

TEST_CASE("models on the host have two workers for each run that they do side by side") {
  Rig rig({}, 3);
  rig.dear->gate.shut();
  for (std::uint64_t ticket = 0; ticket < 6; ++ticket) rig.submit(ticket, kBright);
  rig.dear->gate.wait_for_arrivals(6);
  rig.dear->gate.open();
  CHECK(rig.collect(6).size() == 6);
}

TEST_CASE("batches are the runs of each expert, second looks among them") {
  SchedulerOptions options;
  options.verify_below = 1.1F;
  Rig rig(options);
  rig.predict({kDark});
  rig.predict({kDark, kBright, kBright, kBright, kBright});
  CHECK(rig.scheduler.stats().batches == std::vector<std::uint64_t>{rig.cheap->sizes.size(), rig.dear->sizes.size()});
}

TEST_CASE("the stages of an image add up to its latency, both looks among them") {
  using std::chrono::milliseconds;
  SchedulerOptions options;
  options.verify_below = 1.1F;  // each dark image is seen twice
  Rig rig(options, slow(2, milliseconds(60)), slow(3, milliseconds(40)), slow(3, milliseconds(80)));
  for (const std::size_t count : {1U, 2U}) {
    const SchedulerStats before = rig.scheduler.stats();
    const Answers answers = rig.predict(std::vector<std::uint8_t>(count, kDark));
    const SchedulerStats after = rig.scheduler.stats();
    const auto ms = [&](Stage stage) {
      const auto at = static_cast<std::size_t>(stage);
      const auto ns = static_cast<double>(after.stages[at].sum_ns - before.stages[at].sum_ns);
      return ns * 1e-6 / static_cast<double>(count);
    };
    double parts = 0;
    for (const Stage stage : {Stage::kGate, Stage::kQueue, Stage::kGather, Stage::kExpert, Stage::kScatter}) {
      parts += ms(stage);
    }
    double latency = 0;
    for (const float each : answers.latency) latency += static_cast<double>(each) / static_cast<double>(count);
    CAPTURE(count);
    // A sleep may take longer, never less.
    CHECK(ms(Stage::kGate) >= 60.0);
    CHECK(ms(Stage::kExpert) >= 120.0);
    CHECK(ms(Stage::kTotal) >= 0.999 * parts);
    CHECK(parts >= 0.9 * ms(Stage::kTotal));
    CHECK(latency == doctest::Approx(ms(Stage::kTotal)).epsilon(0.001));
  }
}

TEST_CASE("logits far from zero have a softmax, alone, in a batch and after a second look") {
  const FakeModel far{kShape, 3, [](auto, auto logits) {
                        logits[0] = 1000.0F;
                        logits[1] = 999.0F;
                        logits[2] = -1000.0F;
                      }};
  for (const float below : {0.0F, 1.1F}) {
    SchedulerOptions options;
    options.verify_below = below;
    Rig rig(options, fake_gater(kShape, 2), std::make_shared<FakeEngine>(far), std::make_shared<FakeEngine>(far));
    for (const std::size_t count : {1U, 3U}) {
      const Answers answers = rig.predict(std::vector<std::uint8_t>(count, kDark));
      for (std::size_t i = 0; i < count; ++i) {
        CHECK(answers.probabilities[3 * i] == doctest::Approx(0.7310586));
        CHECK(answers.probabilities[3 * i + 1] == doctest::Approx(0.2689414));
        CHECK(answers.probabilities[3 * i + 2] == 0.0F);
      }
    }
  }
}
