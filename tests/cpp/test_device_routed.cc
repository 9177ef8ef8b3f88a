// The device-routed plan, on a device that interprets its graph.
#include <doctest/doctest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "device_routed_rig.h"

using namespace trt_moe;
using testing::Answers;
using testing::check_same;
using testing::expert_model;
using testing::failure_of;
using testing::FakeModel;
using testing::FakeStreamDevice;
using testing::gater_model;
using testing::kClasses;
using testing::kExperts;
using testing::kShape;
using testing::predict_levels;
using testing::Rig;
using testing::some_levels;

TEST_CASE("the device routes as the host does, with SWITCH and with IF, at any batch size") {
  const std::vector<cuda::DeviceInfo> devices{FakeStreamDevice::some_gpu(13000, 13000),
                                              FakeStreamDevice::some_gpu(12060, 12060)};
  for (const cuda::DeviceInfo& info : devices) {
    for (const bool speculate : {false, true}) {
      Rig host(info);
      Rig device(info);
      device.route_on_device(speculate);
      unsigned seed = 0;
      for (const std::size_t count : {1U, 1U, 1U, 2U, 3U, 4U, 5U, 16U, 17U, 50U}) {
        for (const float weight : {0.0F, 3.0F, 1000.0F}) {
          CAPTURE(count);
          CAPTURE(speculate);
          host.scheduler.set_latency_weight(weight);
          device.scheduler.set_latency_weight(weight);
          const std::vector<std::uint8_t> levels = some_levels(count, ++seed);
          check_same(device.predict(levels), host.predict(levels));
        }
      }
      CHECK(device.scheduler.stats().images == host.scheduler.stats().images);
    }
  }
}

TEST_CASE("all images on one expert, and none on the others") {
  Rig rig;
  rig.route_on_device();
  CHECK(rig.predict(std::vector<std::uint8_t>(16, 250)).routes == std::vector<std::int64_t>(16, 2));
  CHECK(rig.predict(std::vector<std::uint8_t>(3, 5)).routes == std::vector<std::int64_t>(3, 0));
}

TEST_CASE("the plan says which conditional nodes it uses") {
  CHECK(Rig().choose().reason == "conditional graphs with SWITCH nodes (driver for CUDA 13.0, runtime 13.0)");
  CHECK(Rig(FakeStreamDevice::some_gpu(12040, 12040)).choose().reason.find("IF") != std::string::npos);
}

TEST_CASE("what the device cannot route is host-routed, and says why") {
  SUBCASE("no conditional nodes") {
    const cuda::Routing routing = Rig(FakeStreamDevice::some_gpu(12020, 12020)).choose();
    CHECK_FALSE(routing.plan);
    CHECK(routing.reason.find("12.4") != std::string::npos);
    CHECK(routing.reason.find("12.2") != std::string::npos);
  }
  SUBCASE("nodes that no conditional holds") {
    Rig rig(FakeStreamDevice::some_gpu(), {}, gater_model(kShape, kExperts), expert_model(kShape, kClasses, 0), "host");
    const cuda::Routing routing = rig.choose();
    CHECK_FALSE(routing.plan);
    CHECK(routing.reason.find("model dear") != std::string::npos);
    CHECK(routing.reason.find("1 host at batch size 4") != std::string::npos);
    CHECK(rig.predict({250, 5}).routes == std::vector<std::int64_t>{2, 0});
  }
  SUBCASE("the device refuses the graph") {
    Rig rig;
    const int objects = rig.device->state()->objects;
    rig.device->faults().refuse_routed = true;
    const cuda::Routing routing = rig.choose();
    CHECK_FALSE(routing.plan);
    CHECK(routing.reason == "the device-routed plan: operation not supported");
    CHECK(rig.device->state()->objects == objects);
    CHECK(rig.predict({250, 5}).routes == std::vector<std::int64_t>{2, 0});
  }
  SUBCASE("the device refuses to launch the graph, of a single image or of a batch") {
    for (const int succeed : {0, 1}) {
      Rig rig;
      const int objects = rig.device->state()->objects;
      rig.device->faults().launches = succeed;
      const cuda::Routing routing = rig.choose();
      CHECK_FALSE(routing.plan);
      CHECK(routing.reason == "the device-routed plan: the launch failed");
      CHECK(rig.device->state()->objects == objects);
      CHECK(rig.predict({250, 5}).routes == std::vector<std::int64_t>{2, 0});
    }
  }
  SUBCASE("no memory for its blocks") {
    Rig rig;
    const int objects = rig.device->state()->objects;
    for (int succeed = 0; succeed < 3; ++succeed) {
      rig.device->faults().allocations = succeed;
      const cuda::Routing routing = rig.choose();
      CHECK_FALSE(routing.plan);
      CHECK(routing.reason.find("bytes of") != std::string::npos);
      CHECK(rig.device->state()->objects == objects);
    }
    rig.device->faults().allocations = -1;
    CHECK(rig.choose().plan);
  }
  SUBCASE("models of another device, or no device, or one model twice") {
    Rig rig;
    Rig other;
    CHECK(cuda::choose_routing(rig.gater, {other.experts[0]}).reason == "the models run on different devices");
    CHECK(cuda::choose_routing(rig.gater, {testing::fake_expert(kShape, kClasses, 0)}).reason ==
          "not every model runs on a CUDA device");
    CHECK(cuda::choose_routing(rig.gater, {rig.experts[0], rig.experts[0]}).reason.find("cheap is there twice") !=
          std::string::npos);
  }
}

TEST_CASE("an expert with small buckets bounds how many images go through at once") {
  FakeModel cheap = expert_model(kShape, kClasses, 0);
  cheap.buckets = {1, 4};
  Rig rig(FakeStreamDevice::some_gpu(), {}, gater_model(kShape, kExperts), cheap);
  rig.route_on_device();
  CHECK(rig.choose().plan->capacity() == 4);
  CHECK(rig.predict(std::vector<std::uint8_t>(11, 5)).routes == std::vector<std::int64_t>(11, 0));
  CHECK(rig.scheduler.stats().batches[0] == 3);
}

TEST_CASE("device-routed answers are counted, with their total latency") {
  Rig rig;
  rig.route_on_device();
  rig.predict({5});
  rig.predict({5, 250, 250, 128});
  const SchedulerStats stats = rig.scheduler.stats();
  CHECK(stats.images == std::vector<std::uint64_t>{2, 1, 2});
  CHECK(stats.batches == std::vector<std::uint64_t>{2, 1, 1});
  CHECK(stats.stages[static_cast<std::size_t>(Stage::kTotal)].count == 5);
  CHECK(stats.in_flight == 0);
}

TEST_CASE("the time that runs wait for the device is counted, and is no more than they take") {
  Rig rig;
  const auto plan = rig.choose().plan;
  REQUIRE(plan);
  rig.scheduler.use(plan);
  const auto before = plan->waited();
  const auto start = std::chrono::steady_clock::now();
  rig.predict(std::vector<std::uint8_t>(40, 5));
  const auto took = std::chrono::steady_clock::now() - start;
  CHECK(plan->waited() > before);
  CHECK(plan->waited() - before < took);
}

TEST_CASE("what is routed on the device is verified as on the host") {
  const std::vector<std::uint8_t> levels = some_levels(53, 11);
  for (const float below : {0.0F, 0.6F, 0.9F, 1.1F}) {
    Rig device;
    device.route_on_device();
    Rig host;
    for (Rig* rig : {&device, &host}) rig->scheduler.set_verify_below(below);
    const Answers routed = device.predict(levels);
    check_same(routed, host.predict(levels));
    for (const float latency : routed.latency) CHECK(latency > 0.0F);
    const SchedulerStats stats = device.scheduler.stats();
    CHECK(stats.images == host.scheduler.stats().images);
    CHECK(stats.passed_on == host.scheduler.stats().passed_on);
    CHECK((stats.passed_on[0] > 0) == (below > 0.0F));
    CHECK(stats.in_flight == 0);
  }
}

TEST_CASE("no more is verified at a time than may wait") {
  SchedulerOptions options;
  options.max_queue = 4;
  Rig device(FakeStreamDevice::some_gpu(), options);
  device.route_on_device();
  Rig host;
  for (Rig* rig : {&device, &host}) rig->scheduler.set_verify_below(1.1F);
  const std::vector<std::uint8_t> levels = some_levels(16, 12);
  check_same(device.predict(levels), host.predict(levels));
  CHECK(device.scheduler.stats().images == host.scheduler.stats().images);
}

TEST_CASE("a device that is lost while the plan is tried is no reason to route on the host") {
  Rig rig;
  rig.device->faults().launches_before_loss = 0;
  CHECK(failure_of([&] { rig.choose(); }).kind == ErrorKind::kDeviceLost);
}

TEST_CASE("logits that are not finite are an error on the device too") {
  const auto nan = [](auto, auto logits) { std::fill(logits.begin(), logits.end(), std::nanf("")); };
  SchedulerOptions cold;
  cold.warmup = false;
  SUBCASE("gater") {
    Rig rig(FakeStreamDevice::some_gpu(), cold, {kShape, kExperts, nan}, expert_model(kShape, kClasses, 0));
    rig.route_on_device();
    const Failure failure = failure_of([&] { rig.predict({5, 250}); });
    CHECK(failure.kind == ErrorKind::kModelOutput);
    CHECK(failure.message.find("the gater") != std::string::npos);
  }
  SUBCASE("expert") {
    Rig rig(FakeStreamDevice::some_gpu(), cold, gater_model(kShape, kExperts), {kShape, kClasses, nan});
    rig.route_on_device();
    const Failure failure = failure_of([&] { rig.predict({250, 5}); });
    CHECK(failure.kind == ErrorKind::kModelOutput);
    CHECK(failure.message.find("expert cheap") != std::string::npos);
    CHECK(rig.predict({250, 250}).routes == std::vector<std::int64_t>{2, 2});
  }
}

TEST_CASE("a device-routed launch that fails fails its predict, and the next one is answered") {
  Rig rig;
  rig.route_on_device();
  rig.device->faults().launches = 1;
  CHECK(failure_of([&] { rig.predict(std::vector<std::uint8_t>(40, 5)); }).kind == ErrorKind::kDevice);
  CHECK(rig.predict({250}).routes[0] == 2);
}

TEST_CASE("a device that is lost in a device-routed predict closes the router") {
  Rig rig;
  rig.route_on_device();
  rig.device->faults().launches_before_loss = 0;
  const Failure failure = failure_of([&] { rig.predict({5, 250}); });
  CHECK(failure.kind == ErrorKind::kDeviceLost);
  CHECK(failure.message.find("restart the process") != std::string::npos);
  CHECK(rig.scheduler.closing());
  CHECK(failure_of([&] { rig.predict({5}); }).kind == ErrorKind::kDeviceLost);
  rig.scheduler.close(false);
}

TEST_CASE("the device speculates on a lone image, and on none that has company") {
  std::atomic<int> cheap_runs{0};
  FakeModel cheap = expert_model(kShape, kClasses, 0);
  cheap.compute = [&, compute = cheap.compute](auto image, auto logits) {
    ++cheap_runs;
    compute(image, logits);
  };
  SchedulerOptions cold;
  cold.warmup = false;
  Rig rig(FakeStreamDevice::some_gpu(), cold, gater_model(kShape, kExperts), cheap);
  rig.route_on_device(true);
  const auto runs = [&](const std::vector<std::uint8_t>& levels) {
    const int before = cheap_runs;
    const Answers answers = rig.predict(levels);
    for (std::size_t i = 0; i < levels.size(); ++i) CHECK(answers.routes[i] == (levels[i] > 200 ? 2 : 0));
    return cheap_runs - before;
  };
  CHECK(runs({250}) == 1);  // for nothing
  CHECK(runs({5}) == 1);
  CHECK(runs({250, 250}) == 0);
  const std::vector<std::uint8_t> bright(kShape.bytes(), 250);
  rig.scheduler.submit(0, bright.data());  // under way until it is taken
  CHECK(runs({250}) == 0);
  CHECK(runs({5}) == 1);
  std::vector<SubmittedRequest*> done;
  rig.scheduler.take_completed(done);
  REQUIRE(done.size() == 1);
  rig.scheduler.recycle(done[0]);
  CHECK(runs({250}) == 1);
}

TEST_CASE("predict, speculation and submit share the models from many threads") {
  for (const bool on_device : {true, false}) {
    SchedulerOptions options;
    options.speculate = true;
    Rig rig(FakeStreamDevice::some_gpu(), options);
    if (on_device) rig.route_on_device(true);
    const std::vector<std::uint8_t> levels = some_levels(60, 3);
    const Answers expected = rig.predict(levels);
    std::atomic<int> different{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; ++t) {
      threads.emplace_back([&] {
        for (int round = 0; round < 10; ++round) {
          if (rig.predict(levels).routes != expected.routes) ++different;
          for (std::size_t i = 0; i < 10; ++i) {
            if (rig.predict({levels[i]}).routes[0] != expected.routes[i]) ++different;
          }
        }
      });
    }
    for (std::uint64_t ticket = 0; ticket < levels.size(); ++ticket) {
      const std::vector<std::uint8_t> image(kShape.bytes(), levels[ticket]);
      rig.scheduler.submit(ticket, image.data());
    }
    std::vector<SubmittedRequest*> done;
    for (std::size_t left = levels.size(); left > 0;) {
      rig.scheduler.take_completed(done);
      for (SubmittedRequest* request : done) {
        if (request->failure() || request->route() != expected.routes[request->ticket()]) ++different;
        rig.scheduler.recycle(request);
        --left;
      }
    }
    for (auto& thread : threads) thread.join();
    CHECK(different == 0);
  }
}

TEST_CASE("closing lets a device-routed predict of many parts finish, or refuses its rest") {
  for (const bool cancel : {false, true}) {
    Rig rig;
    rig.route_on_device();
    std::atomic<bool> refused{false};
    std::thread caller([&] {
      try {
        for (;;) rig.predict(std::vector<std::uint8_t>(200, 5));
      } catch (const Error& error) {
        refused = error.kind() == ErrorKind::kRouterClosed;
      }
    });
    while (rig.scheduler.stats().images[0] == 0) std::this_thread::yield();
    rig.scheduler.close(cancel);
    caller.join();
    CHECK(refused);
    CHECK(rig.scheduler.stats().in_flight == 0);
  }
}

TEST_CASE("a device-routed predict takes max_batch at a time") {
  SchedulerOptions options;
  options.max_batch = 2;
  Rig rig(FakeStreamDevice::some_gpu(), options);
  rig.route_on_device();
  rig.predict(std::vector<std::uint8_t>(6, 5));
  CHECK(rig.scheduler.stats().batches[0] == 3);
}

TEST_CASE("between its parts a device-routed predict is polled for, and cancelled") {
  SchedulerOptions options;
  options.max_batch = 1;
  FakeModel slow = expert_model(kShape, kClasses, 0);
  slow.compute = [compute = slow.compute](auto image, auto logits) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    compute(image, logits);
  };
  Rig rig(FakeStreamDevice::some_gpu(), options, gater_model(kShape, kExperts), slow);
  rig.route_on_device();
  const std::vector<std::uint8_t> levels(600, 5);
  CHECK_THROWS_WITH(rig.predict(levels, [] { throw std::runtime_error("interrupted"); }), "interrupted");
  const std::uint64_t before = rig.scheduler.stats().images[0];
  CHECK(before < 600);
  std::thread closer([&] {
    while (rig.scheduler.stats().images[0] == before) std::this_thread::yield();
    rig.scheduler.close(true);
  });
  CHECK(failure_of([&] { rig.predict(levels); }).kind == ErrorKind::kRouterClosed);
  closer.join();
  CHECK(rig.scheduler.stats().images[0] < before + 600);
}

TEST_CASE("the lists of a large batch of several experts lie apart") {
  const auto with_large_batches = [](FakeModel model) {
    model.buckets = {1, 64};
    return model;
  };
  const auto device = std::make_shared<FakeStreamDevice>(FakeStreamDevice::some_gpu());
  const auto gater = capture_model(device, "gater", with_large_batches(gater_model(kShape, kExperts)));
  std::vector<Expert> experts;
  std::vector<std::shared_ptr<Engine>> engines;
  for (std::size_t expert = 0; expert < kExperts; ++expert) {
    const FakeModel model = with_large_batches(expert_model(kShape, kClasses, expert));
    engines.push_back(capture_model(device, "e" + std::to_string(expert), model));
    experts.push_back({"e" + std::to_string(expert), engines.back(), 0.25F * static_cast<float>(expert + 1)});
  }
  Scheduler host(gater, experts, {});
  Scheduler routed(gater, experts, {});
  const auto routing = cuda::choose_routing(gater, engines);
  REQUIRE(routing.plan);
  CHECK(routing.plan->capacity() == 64);
  routed.use(routing.plan);
  const std::vector<std::uint8_t> levels = some_levels(64, 21);
  check_same(predict_levels<Answers>(routed, kShape, levels, nullptr),
             predict_levels<Answers>(host, kShape, levels, nullptr));
}
