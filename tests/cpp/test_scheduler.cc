#include <doctest/doctest.h>

#include <atomic>
#include <cmath>
#include <future>
#include <random>
#include <thread>
#include <vector>

#include "two_experts.h"

using namespace trt_moe;
using namespace trt_moe::testing::two_experts;

TEST_CASE("every image is answered by its own expert, in input order") {
  Rig rig;
  const Answers answers = rig.predict({kDark, kBright, kBright, kDark, kBright});
  CHECK(answers.routes == std::vector<std::int64_t>{0, 1, 1, 0, 1});
  for (std::size_t i = 0; i < 5; ++i) {
    CHECK(answers.probabilities[3 * i] + answers.probabilities[3 * i + 1] + answers.probabilities[3 * i + 2] ==
          doctest::Approx(1.0));
    CHECK(answers.latency[i] > 0.0F);
  }
}

TEST_CASE("probabilities are the softmax of the routed expert's logits") {
  Rig rig;
  const Answers answers = rig.predict({kBright});
  std::vector<float> logits(3);
  testing::score_position(kBright / 255.0, 40.0, logits);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit);
  for (std::size_t c = 0; c < 3; ++c) CHECK(answers.probabilities[c] == doctest::Approx(std::exp(logits[c]) / sum));
}

TEST_CASE("the latency weight moves routes without a new scheduler") {
  Rig rig;
  CHECK(rig.predict({kBright}).routes[0] == 1);
  rig.scheduler.set_latency_weight(1000.0F);
  CHECK(rig.predict({kBright}).routes[0] == 0);
  CHECK(rig.predict({kBright, kBright}).routes == std::vector<std::int64_t>{0, 0});
}

TEST_CASE("where an expert is unsure the answer is the mean of its own and the dearest one's") {
  // The cheap expert gives its likeliest class .99 at the darkest level and less the nearer an image is to 1/3.
  const std::vector<std::uint8_t> levels{0, 80, 0, 230};
  std::vector<float> logits(3);
  testing::score_position(80 / 255.0, 20.0, logits);
  CHECK(1.0F / (1.0F + std::exp(logits[0] - logits[1]) + std::exp(logits[2] - logits[1])) < 0.9F);

  for (const bool at_once : {true, false}) {
    Rig rig;
    const auto routes = [&] {
      std::vector<std::int64_t> all;
      if (at_once) return rig.predict(levels).routes;
      for (const std::uint8_t level : levels) all.push_back(rig.predict({level}).routes[0]);
      return all;
    };
    CHECK(routes() == std::vector<std::int64_t>{0, 0, 0, 1});
    CHECK(rig.scheduler.stats().passed_on == std::vector<std::uint64_t>{0, 0});

    rig.scheduler.set_verify_below(0.9F);
    CHECK(routes() == std::vector<std::int64_t>{0, 1, 0, 1});
    CHECK(rig.scheduler.stats().passed_on == std::vector<std::uint64_t>{1, 0});
    CHECK(rig.scheduler.stats().images == std::vector<std::uint64_t>{5, 3});
    const std::vector<float> answers = at_once ? rig.predict(levels).probabilities : rig.predict({80}).probabilities;
    const std::span<const float> verified = std::span(answers).subspan(at_once ? 3 : 0, 3);

    rig.scheduler.set_verify_below(0.0F);
    const std::vector<float> unverified = rig.predict({80}).probabilities;
    rig.scheduler.set_latency_weight(-1000.0F);
    const Answers straight = rig.predict({80});
    CHECK(straight.routes[0] == 1);
    REQUIRE(unverified.size() == verified.size());
    for (std::size_t i = 0; i < verified.size(); ++i) {
      CHECK(verified[i] == (unverified[i] + straight.probabilities[i]) / 2.0F);
    }
  }
}

TEST_CASE("submitted images are verified as well, and a cancelled or failed one is not lost on the way") {
  SchedulerOptions options;
  options.verify_below = 1.0F;
  for (const bool shared_workers : {false, true}) {
    Rig rig = Rig::of(shared_workers, options);
    for (std::uint64_t ticket = 0; ticket < 50; ++ticket) rig.submit(ticket, kDark);
    for (const auto& [ticket, failure] : rig.collect(50)) CHECK(failure.empty());
    CHECK(rig.scheduler.stats().images == std::vector<std::uint64_t>{0, 50});
    CHECK(rig.scheduler.stats().passed_on == std::vector<std::uint64_t>{50, 0});
    CHECK(rig.scheduler.stats().in_flight == 0);

    rig.dear->gate.shut();
    for (std::uint64_t ticket = 0; ticket < 20; ++ticket) rig.submit(ticket, kDark);
    rig.dear->gate.wait_for_arrivals(1);
    std::thread closer([&] { rig.scheduler.close(true); });
    while (!rig.scheduler.closing()) std::this_thread::yield();
    rig.dear->gate.open();
    const auto outcomes = rig.collect(20);
    closer.join();
    CHECK(outcomes.size() == 20);
  }
}

TEST_CASE("answers are identical alone, in a batch, in turns and from many threads") {
  SchedulerOptions options;
  options.max_batch = 8;
  for (const bool shared_workers : {false, true}) {
    Rig rig = Rig::of(shared_workers, options);
    std::mt19937 random(7);
    std::vector<std::uint8_t> levels(100);
    for (auto& level : levels) level = static_cast<std::uint8_t>(random() % 256);
    const Answers together = rig.predict(levels);
    std::vector<std::thread> threads;
    std::atomic<int> different{0};
    for (int t = 0; t < 8; ++t) {
      threads.emplace_back([&, t] {
        for (std::size_t i = static_cast<std::size_t>(t); i < levels.size(); i += 8) {
          const Answers alone = rig.predict({levels[i]});
          const bool same = alone.routes[0] == together.routes[i] &&
                            std::equal(alone.probabilities.begin(), alone.probabilities.end(),
                                       together.probabilities.begin() + static_cast<std::ptrdiff_t>(3 * i));
          if (!same) ++different;
        }
      });
    }
    for (auto& thread : threads) thread.join();
    CHECK(different == 0);
  }
}

TEST_CASE("a lone image on an idle scheduler runs on its caller's thread") {
  Rig rig;
  rig.predict({kDark});
  CHECK(rig.cheap->lone_runs == 1);
  CHECK(rig.cheap->sizes == std::vector<std::size_t>{1});
  CHECK(rig.scheduler.stats().images == std::vector<std::uint64_t>{1, 0});
}

TEST_CASE("a lone image that is submitted takes the same way on a worker, each time") {
  Rig rig({}, 1);
  for (std::uint64_t ticket = 0; ticket < 100; ++ticket) {
    rig.submit(ticket, ticket % 4 == 0 ? kBright : kDark);
    REQUIRE(rig.collect(1)[ticket].empty());
  }
  CHECK(rig.gater->lone_runs == 100);
  CHECK(rig.cheap->lone_runs == 75);
  CHECK(rig.dear->lone_runs == 25);
  const SchedulerStats stats = rig.scheduler.stats();
  CHECK(stats.images == std::vector<std::uint64_t>{75, 25});
  for (const HistogramSnapshot& stage : stats.stages) CHECK(stage.count == 100);
  CHECK(stats.stages[static_cast<std::size_t>(Stage::kQueue)].sum_ns > 0);
}

TEST_CASE("a submitted image that has company goes from worker to worker") {
  Rig rig({}, 1);
  rig.gater->gate.shut();
  rig.submit(0, kDark);
  rig.gater->gate.wait_for_arrivals(1);
  rig.submit(1, kDark);
  rig.gater->gate.wait_for_arrivals(2);
  CHECK(rig.gater->lone_runs == 1);
  rig.gater->gate.open();
  CHECK(rig.collect(2).size() == 2);
  CHECK(rig.cheap->lone_runs == 1);
}

TEST_CASE("where each model has workers of its own, a lone image that is submitted leaves the gater to others") {
  Rig rig;
  rig.submit(0, kDark);
  CHECK(rig.collect(1)[0].empty());
  CHECK(rig.gater->lone_runs == 0);
  CHECK(rig.cheap->lone_runs == 0);
}

TEST_CASE("a lone image that fails on a worker fails alone") {
  Rig rig({}, 1);
  rig.gater->runs_to_fail = 1;
  rig.submit(0, kDark);
  CHECK(rig.collect(1)[0] == "the fake device failed");
  rig.cheap->runs_to_fail = 1;
  rig.submit(1, kDark);
  CHECK(rig.collect(1)[1] == "the fake device failed");
  rig.submit(2, kDark);
  CHECK(rig.collect(1)[2].empty());
}

TEST_CASE("a slow expert does not hold up the images of a fast one") {
  Rig rig;
  rig.dear->gate.shut();
  for (std::uint64_t ticket = 0; ticket < 6; ++ticket) rig.submit(ticket, kBright);
  rig.dear->gate.wait_for_arrivals(1);
  rig.submit(100, kDark);
  const auto first = rig.collect(1);
  CHECK(first.contains(100));
  rig.dear->gate.open();
  CHECK(rig.collect(6).size() == 6);
}

TEST_CASE("where workers are shared, one that a slow expert holds leaves the others to fast ones") {
  Rig rig({}, 1);
  rig.dear->gate.shut();
  rig.submit(0, kBright);
  rig.dear->gate.wait_for_arrivals(1);
  for (std::uint64_t ticket = 1; ticket <= 8; ++ticket) rig.submit(ticket, kDark);
  CHECK(rig.collect(8).count(0) == 0);
  rig.dear->gate.open();
  CHECK(rig.collect(1).contains(0));
}

TEST_CASE("where workers are shared, of one request the dearest expert runs first") {
  Rig rig({}, 1);
  rig.dear->gate.shut();
  // Four images fill a bucket of the gater; two bright ones then hold both workers.
  std::future<Answers> answers =
      std::async(std::launch::async, [&] { return rig.predict({kDark, kBright, kBright, kDark}); });
  rig.dear->gate.wait_for_arrivals(2);
  CHECK(rig.cheap->sizes.empty());
  rig.dear->gate.open();
  CHECK(answers.get().routes == std::vector<std::int64_t>{0, 1, 1, 0});
}

TEST_CASE("expert batches form across requests") {
  FakeModel lone_gater{kShape, 2, [](auto image, auto logits) {
                         testing::score_position(testing::mean_brightness(image), 40.0, logits);
                       }};
  lone_gater.parallel = 1;  // so that images reach the experts in the order they were submitted
  auto gater = std::make_shared<FakeEngine>(lone_gater);
  FakeModel one_worker{kShape, 3, [](auto, auto logits) { std::fill(logits.begin(), logits.end(), 0.0F); }};
  one_worker.parallel = 1;
  Rig rig({}, gater, std::make_shared<FakeEngine>(one_worker));
  rig.cheap->gate.shut();
  rig.submit(0, kDark);
  rig.cheap->gate.wait_for_arrivals(1);
  for (std::uint64_t ticket = 1; ticket <= 4; ++ticket) rig.submit(ticket, kDark);
  // The one gater worker takes them in order: once the bright one is answered, the four wait in their queue.
  rig.submit(5, kBright);
  CHECK(rig.collect(1).contains(5));
  rig.cheap->gate.open();
  CHECK(rig.collect(5).size() == 5);
  CHECK(rig.cheap->sizes == std::vector<std::size_t>{1, 4});
}

TEST_CASE("a batch that fails fails only its own images") {
  Rig rig;
  rig.dear->runs_to_fail = 1;
  CHECK(kind_of([&] { rig.predict({kBright}); }) == ErrorKind::kDevice);
  CHECK(rig.predict({kBright}).routes[0] == 1);
  rig.cheap->runs_to_fail = 1000;
  for (std::uint64_t ticket = 0; ticket < 10; ++ticket) rig.submit(ticket, ticket % 2 == 0 ? kDark : kBright);
  for (const auto& [ticket, error] : rig.collect(10)) CHECK(error.empty() == (ticket % 2 == 1));
}

TEST_CASE("a failing gater fails the request and the next one is answered") {
  Rig rig;
  rig.gater->runs_to_fail = 1;
  CHECK(kind_of([&] { rig.predict({kBright, kDark}); }) == ErrorKind::kDevice);
  rig.gater->runs_to_fail = 0;
  CHECK(rig.predict({kBright, kDark}).routes == std::vector<std::int64_t>{1, 0});
}

TEST_CASE("logits that are not finite are an error, from gater and expert, alone and in a batch") {
  const auto nan = [](auto, auto logits) { std::fill(logits.begin(), logits.end(), std::nanf("")); };
  SUBCASE("gater") {
    Rig rig({}, std::make_shared<FakeEngine>(FakeModel{kShape, 2, nan}), fake_expert(kShape, 3, 0));
    CHECK(kind_of([&] { rig.predict({kDark}); }) == ErrorKind::kModelOutput);
    CHECK(kind_of([&] { rig.predict({kDark, kBright}); }) == ErrorKind::kModelOutput);
  }
  SUBCASE("expert") {
    Rig rig({}, fake_gater(kShape, 2), std::make_shared<FakeEngine>(FakeModel{kShape, 3, nan}));
    CHECK(kind_of([&] { rig.predict({kDark}); }) == ErrorKind::kModelOutput);
    CHECK(kind_of([&] { rig.predict({kDark, kBright}); }) == ErrorKind::kModelOutput);
    CHECK(rig.predict({kBright, kBright}).routes == std::vector<std::int64_t>{1, 1});
  }
}

TEST_CASE("a full queue refuses, takes nothing and recovers") {
  SchedulerOptions options;
  options.max_queue = 3;
  Rig rig(options);
  rig.dear->gate.shut();
  for (std::uint64_t ticket = 0; ticket < 3; ++ticket) rig.submit(ticket, kBright);
  CHECK(kind_of([&] { rig.submit(3, kDark); }) == ErrorKind::kQueueFull);
  CHECK(kind_of([&] { rig.predict({kDark}); }) == ErrorKind::kQueueFull);
  rig.dear->gate.open();
  CHECK(rig.collect(3).size() == 3);
  CHECK(rig.scheduler.stats().in_flight == 0);
  CHECK(rig.predict({kDark, kDark, kDark, kDark, kDark}).routes == std::vector<std::int64_t>(5, 0));
}

TEST_CASE("closing answers what waits") {
  for (const bool shared_workers : {false, true}) {
    Rig rig = Rig::of(shared_workers);
    rig.dear->gate.shut();
    for (std::uint64_t ticket = 0; ticket < 20; ++ticket) rig.submit(ticket, kBright);
    rig.dear->gate.wait_for_arrivals(1);
    std::thread closer([&] { rig.scheduler.close(false); });
    rig.dear->gate.open();
    closer.join();
    const auto outcomes = rig.collect(20);
    CHECK(outcomes.size() == 20);
    for (const auto& [ticket, error] : outcomes) CHECK(error.empty());
    CHECK(kind_of([&] { rig.predict({kDark}); }) == ErrorKind::kRouterClosed);
    CHECK(kind_of([&] { rig.submit(99, kDark); }) == ErrorKind::kRouterClosed);
    CHECK(rig.scheduler.stats().in_flight == 0);
  }
}

TEST_CASE("closing with cancel fails what waits, and loses no future") {
  for (const bool shared_workers : {false, true}) {
    Rig rig = Rig::of(shared_workers);
    rig.dear->gate.shut();
    std::uint64_t accepted = 0;
    while (accepted < 20) rig.submit(accepted++, kBright);
    rig.dear->gate.wait_for_arrivals(2);
    std::thread closer([&] { rig.scheduler.close(true); });
    try {
      for (;;) rig.submit(accepted++, kBright);
    } catch (const Error& error) {
      // The queue may fill before the other thread closes it.
      --accepted;
    }
    rig.dear->gate.open();
    closer.join();
    const auto outcomes = rig.collect(accepted);
    CHECK(outcomes.size() == accepted);
    std::size_t refused = 0;
    for (const auto& [ticket, error] : outcomes) refused += error.find("closed") != std::string::npos ? 1 : 0;
    CHECK(refused <= accepted);
    std::vector<SubmittedRequest*> rest;
    rig.scheduler.take_completed(rest);
    CHECK(rest.empty());
    CHECK(rig.scheduler.stats().in_flight == 0);
  }
}

TEST_CASE("an image that waits when the router is cancelled gets the closed error") {
  Rig rig;
  rig.dear->gate.shut();
  for (std::uint64_t ticket = 0; ticket < 40; ++ticket) rig.submit(ticket, kBright);
  rig.dear->gate.wait_for_arrivals(2);
  // At most two workers with 16 images each are past the point of no return.
  std::thread closer([&] { rig.scheduler.close(true); });
  while (!rig.scheduler.closing()) std::this_thread::yield();
  rig.dear->gate.open();
  closer.join();
  std::size_t refused = 0;
  for (const auto& [ticket, error] : rig.collect(40)) refused += error.find("closed") != std::string::npos ? 1 : 0;
  CHECK(refused >= 8);
}

TEST_CASE("closing lets a predict of many parts finish") {
  SchedulerOptions options;
  options.max_batch = 4;
  for (const bool shared_workers : {false, true}) {
    Rig rig = Rig::of(shared_workers, options);
    rig.dear->gate.shut();
    std::future<Answers> answers =
        std::async(std::launch::async, [&] { return rig.predict(std::vector<std::uint8_t>(30, kBright)); });
    rig.dear->gate.wait_for_arrivals(1);
    std::thread closer([&] { rig.scheduler.close(false); });
    while (!rig.scheduler.closing()) std::this_thread::yield();
    rig.dear->gate.open();
    CHECK(answers.get().routes == std::vector<std::int64_t>(30, 1));
    closer.join();
  }
}

TEST_CASE("an error in one part of a large predict ends the whole and leaves nothing behind") {
  SchedulerOptions options;
  options.max_batch = 4;
  Rig rig(options);
  rig.dear->runs_to_fail = 1;
  CHECK(kind_of([&] { rig.predict(std::vector<std::uint8_t>(30, kBright)); }) == ErrorKind::kDevice);
  CHECK(rig.scheduler.stats().in_flight == 0);
  CHECK(rig.predict(std::vector<std::uint8_t>(30, kBright)).routes == std::vector<std::int64_t>(30, 1));
}

TEST_CASE("requests that race with close are answered or refused, never lost") {
  for (int round = 0; round < 20; ++round) {
    Rig rig = Rig::of(round % 4 >= 2);
    std::atomic<int> answered{0};
    std::atomic<int> refused{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 25; ++i) {
          try {
            rig.predict({kDark, kBright});
            ++answered;
          } catch (const Error& error) {
            if (error.kind() == ErrorKind::kRouterClosed) ++refused;
          }
        }
      });
    }
    rig.scheduler.close(round % 2 == 0);
    for (auto& thread : threads) thread.join();
    CHECK(answered + refused == 100);
    CHECK(rig.scheduler.stats().in_flight == 0);
  }
}

TEST_CASE("a poll that throws cancels the request, waits for what runs and passes the error on") {
  Rig rig;
  rig.dear->gate.shut();
  static Rig* open_later = nullptr;
  open_later = &rig;
  const std::vector<std::uint8_t> levels(40, kBright);
  CHECK_THROWS_WITH(rig.predict(levels,
                                [] {
                                  open_later->dear->gate.open();
                                  throw std::runtime_error("interrupted");
                                }),
                    "interrupted");
  CHECK(rig.scheduler.stats().in_flight == 0);
  CHECK(rig.predict({kBright, kBright}).routes == std::vector<std::int64_t>{1, 1});
}

TEST_CASE("what a poll has cancelled is not run any more, and the poll is not called again") {
  static std::atomic<int> polls;
  polls = 0;
  Rig rig;
  rig.dear->gate.shut();
  std::thread opener([&] {
    while (polls == 0) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    rig.dear->gate.open();
  });
  CHECK_THROWS(rig.predict(std::vector<std::uint8_t>(60, kBright), [] {
    ++polls;
    throw std::runtime_error("interrupted");
  }));
  opener.join();
  CHECK(polls == 1);
  std::size_t ran = 0;
  for (const std::size_t size : rig.dear->sizes) ran += size;
  CHECK(ran <= 32);  // the two batches that were under way
}

TEST_CASE("a poll may close the scheduler that calls it") {
  static Rig* closes = nullptr;
  static bool waited = true;
  Rig rig;
  closes = &rig;
  rig.dear->gate.shut();
  const auto act = [&] {
    rig.predict(std::vector<std::uint8_t>(40, kBright), [] {
      waited = closes->scheduler.close(true);
      closes->dear->gate.open();
    });
  };
  CHECK(kind_of(act) == ErrorKind::kRouterClosed);
  CHECK_FALSE(waited);
  CHECK(rig.scheduler.close(true));
}

TEST_CASE("a close that cancels goes past one that waits") {
  Rig rig;
  rig.dear->gate.shut();
  for (std::uint64_t ticket = 0; ticket < 40; ++ticket) rig.submit(ticket, kBright);
  rig.dear->gate.wait_for_arrivals(2);
  std::thread waits([&] { rig.scheduler.close(false); });
  while (!rig.scheduler.closing()) std::this_thread::yield();
  std::thread cancels([&] { rig.scheduler.close(true); });
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  rig.dear->gate.open();
  waits.join();
  cancels.join();
  std::size_t refused = 0;
  for (const auto& [ticket, error] : rig.collect(40)) refused += error.empty() ? 0 : 1;
  CHECK(refused > 0);
}

TEST_CASE("of several errors in a request the first one counts") {
  struct Plain final : Request {
    using Request::failure;
    using Request::Request;
    void finish() override { ++finished; }
    int finished = 0;
  } request({nullptr, 3, 0}, {}, Clock::now());
  request.fail_one({ErrorKind::kDevice, "first"});
  request.fail_one({ErrorKind::kModelOutput, "second"});
  CHECK(request.finished == 0);
  request.complete_one();
  CHECK(request.finished == 1);
  CHECK(request.failure()->message == "first");
  CHECK(request.failure()->kind == ErrorKind::kDevice);
}

TEST_CASE("every stage is counted once an image") {
  Rig rig;
  rig.predict({kDark});
  rig.predict({kDark, kBright, kBright, kBright, kBright});
  const SchedulerStats stats = rig.scheduler.stats();
  for (const auto& stage : stats.stages) CHECK(stage.count == 6);
  CHECK(stats.images == std::vector<std::uint64_t>{2, 4});
  CHECK(stats.in_flight == 0);
}

TEST_CASE("engines that do not fit each other are refused") {
  const auto gater = fake_gater(kShape, 3);
  CHECK(kind_of([&] { Scheduler(gater, {{"a", fake_expert(kShape, 3, 0), 1.0F}}, {}); }) == ErrorKind::kInput);
  const auto two = fake_gater(kShape, 2);
  const auto other_classes =
      std::vector<Expert>{{"a", fake_expert(kShape, 3, 0), 0.5F}, {"b", fake_expert(kShape, 4, 1), 1.0F}};
  CHECK(kind_of([&] { Scheduler(two, other_classes, {}); }) == ErrorKind::kInput);
  const auto other_size =
      std::vector<Expert>{{"a", fake_expert(kShape, 3, 0), 0.5F}, {"b", fake_expert({4, 4, 1}, 3, 1), 1.0F}};
  CHECK(kind_of([&] { Scheduler(two, other_size, {}); }) == ErrorKind::kInput);
}
