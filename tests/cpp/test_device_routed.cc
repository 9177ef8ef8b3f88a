// The device-routed plan, on a device that interprets its graph.
#include <doctest/doctest.h>

#include <cstring>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "backends/cuda/device_input.h"
#include "backends/cuda/device_output.h"
#include "backends/cuda/device_routed_plan.h"
#include "core/error.h"
#include "core/scheduler.h"
#include "fake_captured_model.h"

using namespace trt_moe;
using testing::capture_model;
using testing::expert_model;
using testing::FakeModel;
using testing::FakeStreamDevice;
using testing::gater_model;

namespace {

constexpr ImageShape kShape{2, 2, 1};
constexpr std::size_t kExperts = 3;
constexpr std::size_t kClasses = 5;

struct Answers {
  explicit Answers(std::size_t images)
      : probabilities(images * kClasses), gater(images * kExperts), routes(images, -1), latency(images) {}
  OutputRows rows() { return {probabilities.data(), gater.data(), routes.data(), latency.data()}; }
  std::vector<float> probabilities;
  std::vector<float> gater;
  std::vector<std::int64_t> routes;
  std::vector<float> latency;
};

struct Rig {
  explicit Rig(cuda::DeviceInfo info = FakeStreamDevice::some_gpu(), SchedulerOptions options = {})
      : Rig(info, options, gater_model(kShape, kExperts), expert_model(kShape, kClasses, 0)) {}

  Rig(const cuda::DeviceInfo& info, const SchedulerOptions& options, const FakeModel& gater_of,
      const FakeModel& cheap_of, const std::string& dear_nodes = "kernel")
      : device(std::make_shared<FakeStreamDevice>(info)),
        gater(capture_model(device, "gater", gater_of)),
        experts{capture_model(device, "cheap", cheap_of), capture_model(device, "middle", middle()),
                capture_model(device, "dear", expert_model(kShape, kClasses, 2), dear_nodes)},
        scheduler(gater, {{"cheap", experts[0], 0.2F}, {"middle", experts[1], 0.5F}, {"dear", experts[2], 1.0F}},
                  options) {}

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

  static std::vector<std::uint8_t> pixels(const std::vector<std::uint8_t>& levels) {
    std::vector<std::uint8_t> all;
    for (const std::uint8_t level : levels) all.insert(all.end(), kShape.bytes(), level);
    return all;
  }

  Answers predict(const std::vector<std::uint8_t>& levels, void (*poll)() = nullptr) {
    const std::vector<std::uint8_t> images = pixels(levels);
    Answers answers(levels.size());
    scheduler.predict({images.data(), levels.size(), kShape.bytes()}, answers.rows(), poll);
    return answers;
  }

  std::shared_ptr<FakeStreamDevice> device;
  std::shared_ptr<cuda::GraphEngine> gater;
  std::vector<std::shared_ptr<cuda::GraphEngine>> experts;
  Scheduler scheduler;
};

std::vector<std::uint8_t> some_levels(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::uint8_t> levels(count);
  for (std::uint8_t& level : levels) level = static_cast<std::uint8_t>(random() % 256);
  return levels;
}

void check_same(const Answers& device, const Answers& host) {
  CHECK(device.routes == host.routes);
  CHECK(device.gater == host.gater);
  for (std::size_t i = 0; i < host.probabilities.size(); ++i) {
    CHECK(device.probabilities[i] == doctest::Approx(host.probabilities[i]).epsilon(1e-5));
  }
}

Failure failure_of(const std::function<void()>& act) {
  try {
    act();
  } catch (const Error& error) {
    return {error.kind(), error.what()};
  }
  FAIL("nothing was thrown");
  return {};
}

}  // namespace

TEST_CASE("the device routes as the host does, with SWITCH, with IF and in mapped memory, at any batch size") {
  const std::vector<cuda::DeviceInfo> devices{FakeStreamDevice::some_gpu(13000, 13000),
                                              FakeStreamDevice::some_gpu(12060, 12060),
                                              FakeStreamDevice::some_gpu(12060, 12060, true)};
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
    for (int succeed = 0; succeed < 4; ++succeed) {
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

TEST_CASE("images written in place give the same answers") {
  for (const bool integrated : {false, true}) {
    Rig rig(FakeStreamDevice::some_gpu(13000, 13000, integrated));
    const cuda::Routing routing = rig.choose();
    REQUIRE(routing.plan);
    rig.scheduler.use(routing.plan);
    const std::span<std::uint8_t> input = routing.plan->input();
    REQUIRE(input.size() == 16 * kShape.bytes());
    const std::vector<std::uint8_t> levels{5, 250, 128};
    for (std::size_t i = 0; i < levels.size(); ++i) {
      std::fill_n(input.data() + i * kShape.bytes(), kShape.bytes(), levels[i]);
    }
    Answers answers(3);
    rig.scheduler.predict({input.data(), 3, kShape.bytes()}, answers.rows(), nullptr);
    check_same(answers, rig.predict(levels));
    CHECK((rig.gater->memory().mapped() != nullptr) == integrated);
  }
}

TEST_CASE("a device that is lost while the plan is tried is no reason to route on the host") {
  Rig rig;
  rig.device->faults().launches_before_loss = 0;
  CHECK(failure_of([&] { rig.choose(); }).kind == ErrorKind::kDeviceLost);
}

TEST_CASE("some of the images written in place may be asked for alone") {
  Rig rig;
  const cuda::Routing routing = rig.choose();
  REQUIRE(routing.plan);
  rig.scheduler.use(routing.plan);
  const std::span<std::uint8_t> input = routing.plan->input();
  const std::vector<std::uint8_t> levels = some_levels(16, 8);
  for (std::size_t i = 0; i < levels.size(); ++i) {
    std::fill_n(input.data() + i * kShape.bytes(), kShape.bytes(), levels[i]);
  }
  Answers answers(15);
  rig.scheduler.predict({input.data() + kShape.bytes(), 15, kShape.bytes()}, answers.rows(), nullptr);
  check_same(answers, rig.predict({levels.begin() + 1, levels.end()}));
}

TEST_CASE("images on the device are read there, after what is on their stream") {
  for (const bool integrated : {false, true}) {
    Rig rig(FakeStreamDevice::some_gpu(13000, 13000, integrated));
    rig.route_on_device();
    const std::vector<std::uint8_t> levels = some_levels(21, 5);
    const auto images = rig.device->allocate(cuda::MemoryKind::kDevice, levels.size() * kShape.bytes());
    const auto stream = rig.device->open_stream();
    // The producer has enqueued its work, but nothing of it has run.
    dynamic_cast<testing::FakeStream&>(*stream).enqueue("kernel", [&] {
      for (std::size_t i = 0; i < levels.size(); ++i) {
        std::memset(reinterpret_cast<void*>(images->device() + i * kShape.bytes()), levels[i], kShape.bytes());
      }
    });
    const DeviceImages on_device{images->device(), levels.size(), kShape.bytes(), stream->handle()};
    Answers answers(levels.size());
    rig.scheduler.predict(on_device, answers.rows(), nullptr);
    check_same(answers, rig.predict(levels));
  }
}

TEST_CASE("images on the device come to the host where the host routes or verifies them") {
  const std::vector<std::uint8_t> levels{5, 250, 128};
  const auto check = [&](Rig& rig, std::size_t count) {
    cuda::DeviceInput input(rig.device);
    Answers answers(count);
    const auto images = rig.device->allocate(cuda::MemoryKind::kDevice, count * kShape.bytes());
    const auto stream = rig.device->open_stream();
    dynamic_cast<testing::FakeStream&>(*stream).enqueue("kernel", [&] {
      for (std::size_t i = 0; i < count; ++i) {
        std::memset(reinterpret_cast<void*>(images->device() + i * kShape.bytes()), levels[i], kShape.bytes());
      }
    });
    const DeviceImages on_device{images->device(), count, kShape.bytes(), stream->handle()};
    CHECK(failure_of([&] { rig.scheduler.predict(on_device, answers.rows(), nullptr); }).kind == ErrorKind::kInput);
    input.on_host(on_device, [&](ImageBatchView view) { rig.scheduler.predict(view, answers.rows(), nullptr); });
    check_same(answers, rig.predict({levels.begin(), levels.begin() + static_cast<std::ptrdiff_t>(count)}));
  };
  Rig host;
  for (const std::size_t count : {1U, 3U}) check(host, count);
  Rig device;
  device.route_on_device();
  device.scheduler.set_verify_below(0.9F);
  check(device, 3);
  CHECK(device.scheduler.stats().passed_on[0] > 0);
}

TEST_CASE("answers stay on the device where they are asked to") {
  const std::vector<std::uint8_t> levels = some_levels(21, 9);
  const std::vector<std::uint8_t> images = Rig::pixels(levels);
  for (const bool integrated : {false, true}) {
    Rig rig(FakeStreamDevice::some_gpu(13000, 13000, integrated));
    rig.route_on_device();
    cuda::DeviceOutputs outputs(rig.device, kExperts, kClasses);
    const auto there = rig.device->allocate(cuda::MemoryKind::kDevice, images.size());
    std::memcpy(reinterpret_cast<void*>(there->device()), images.data(), images.size());
    for (const bool images_there : {false, true}) {
      // Of 21 images, 16 go through at a time.
      const cuda::DeviceOutputs::Rows kept = outputs.take(levels.size());
      Answers answers(levels.size());
      if (images_there) {
        rig.scheduler.predict(DeviceImages{there->device(), levels.size(), kShape.bytes(), 0}, answers.rows(), nullptr,
                              &kept.rows);
      } else {
        rig.scheduler.predict({images.data(), levels.size(), kShape.bytes()}, answers.rows(), nullptr, &kept.rows);
      }
      const auto found = [](std::uintptr_t address, auto example, std::size_t count) {
        const auto* first = reinterpret_cast<const decltype(example)*>(address);
        return std::vector<decltype(example)>(first, first + count);
      };
      const auto routes = found(kept.rows.routes, std::int32_t{}, levels.size());
      CHECK(std::vector<std::int64_t>(routes.begin(), routes.end()) == answers.routes);
      CHECK(found(kept.rows.gater_logits, 0.0F, levels.size() * kExperts) == answers.gater);
      CHECK(found(kept.rows.probabilities, 0.0F, levels.size() * kClasses) == answers.probabilities);
      check_same(answers, rig.predict(levels));
    }
  }
}

TEST_CASE("answers cannot stay on the device where the host routes or verifies") {
  const std::vector<std::uint8_t> image(kShape.bytes());
  const auto refused = [&](Rig& rig) {
    Answers answers(1);
    cuda::DeviceOutputs outputs(rig.device, kExperts, kClasses);
    const cuda::DeviceOutputs::Rows kept = outputs.take(1);
    const Failure failure = failure_of(
        [&] { rig.scheduler.predict({image.data(), 1, kShape.bytes()}, answers.rows(), nullptr, &kept.rows); });
    CHECK(failure.kind == ErrorKind::kInput);
    CHECK(failure.message.find("the answers are to stay on the device") != std::string::npos);
    CHECK(rig.scheduler.stats().in_flight == 0);
  };
  Rig host;
  refused(host);
  Rig device;
  device.route_on_device();
  device.scheduler.set_verify_below(0.9F);
  refused(device);
}

TEST_CASE("memory of answers is used again once nobody holds it, and outlives what gave it") {
  Rig rig;
  const int before = rig.device->state()->objects;
  auto outputs = std::make_unique<cuda::DeviceOutputs>(rig.device, kExperts, kClasses);
  std::optional<cuda::DeviceOutputs::Rows> first = outputs->take(8);
  const std::uintptr_t address = first->rows.routes;
  const cuda::DeviceOutputs::Rows second = outputs->take(8);
  CHECK(second.rows.routes != address);
  first.reset();
  CHECK(outputs->take(4).rows.routes == address);
  CHECK(outputs->take(100).rows.routes != 0);
  // The one that was too small made way for a larger one.
  CHECK(rig.device->state()->objects == before + 2);
  CHECK(outputs->memory_use().device > 100 * kClasses * sizeof(float));
  outputs.reset();
  CHECK(rig.device->state()->objects == before + 2);
  rig.device->faults().allocations = 0;
  cuda::DeviceOutputs none(rig.device, kExperts, kClasses);
  const Failure failure = failure_of([&] { none.take(8); });
  CHECK(failure.kind == ErrorKind::kDevice);
  CHECK(failure.message.find("answers on the device: needs") != std::string::npos);
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
