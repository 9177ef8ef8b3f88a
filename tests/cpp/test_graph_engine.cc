// Captured models and the host-routed plan over them, with faults.
#include <doctest/doctest.h>

#include <cstring>
#include <thread>
#include <vector>

#include "core/error.h"
#include "core/scheduler.h"
#include "fake_captured_model.h"
#include "gater_reference.h"

using namespace trt_moe;
using cuda::ModelCapture;
using testing::capture_model;
using testing::enqueue_model;
using testing::expert_model;
using testing::FakeStreamDevice;
using testing::gater_model;

namespace {

constexpr ImageShape kShape{2, 2, 1};
constexpr std::uint8_t kDark = 20;     // goes to expert 0
constexpr std::uint8_t kBright = 230;  // goes to expert 1

std::shared_ptr<FakeStreamDevice> fake_gpu() {
  return std::make_shared<FakeStreamDevice>(FakeStreamDevice::some_gpu());
}

std::string message_of(const std::function<void()>& act, ErrorKind expected) {
  try {
    act();
  } catch (const Error& error) {
    CHECK(error.kind() == expected);
    return error.what();
  }
  FAIL("nothing was thrown");
  return "";
}

// A router on a fake device whose experts wait at a door.
struct Rig {
  Rig() {
    auto cheap = expert_model(kShape, 3, 0);
    cheap.compute = [this, compute = cheap.compute](auto image, auto logits) {
      door.pass();
      compute(image, logits);
    };
    SchedulerOptions options;
    options.warmup = false;
    scheduler = std::make_unique<Scheduler>(
        capture_model(device, "gater", gater_model(kShape, 2)),
        std::vector<Expert>{{"cheap", capture_model(device, "cheap", cheap), 0.5F},
                            {"dear", capture_model(device, "dear", expert_model(kShape, 3, 1)), 1.0F}},
        options);
  }

  static std::vector<std::uint8_t> image(std::uint8_t level) {
    return std::vector<std::uint8_t>(kShape.bytes(), level);
  }

  std::int64_t predict(std::uint8_t level) const {
    std::vector<float> probabilities(3);
    std::vector<float> gater(2);
    std::int64_t route = -1;
    float latency = 0;
    scheduler->predict({image(level).data(), 1, kShape.bytes()}, {probabilities.data(), gater.data(), &route, &latency},
                       nullptr);
    return route;
  }

  // Failures of `count` submissions, by ticket.
  std::map<std::uint64_t, std::optional<Failure>> collect(std::size_t count) const {
    std::map<std::uint64_t, std::optional<Failure>> outcomes;
    std::vector<SubmittedRequest*> done;
    while (outcomes.size() < count) {
      scheduler->take_completed(done);
      REQUIRE_FALSE(done.empty());
      for (SubmittedRequest* request : done) {
        outcomes[request->ticket()] = request->failure();
        scheduler->recycle(request);
      }
    }
    return outcomes;
  }

  std::shared_ptr<FakeStreamDevice> device = fake_gpu();
  testing::Gate door;
  std::unique_ptr<Scheduler> scheduler;
};

}  // namespace

TEST_CASE("a batch between two buckets is padded, and its answers are its own") {
  const auto engine = capture_model(fake_gpu(), "expert", expert_model(kShape, 3, 0));
  const auto session = engine->open(Lane::kThroughput);
  for (std::size_t i = 0; i < 3; ++i) {
    std::fill_n(session->input().data() + i * kShape.bytes(), kShape.bytes(), static_cast<std::uint8_t>(50 * i));
  }
  const auto logits = session->run(3);
  REQUIRE(logits.size() == 9);
  for (std::size_t i = 0; i < 3; ++i) {
    std::vector<float> expected(3);
    testing::score_position(50.0 * static_cast<double>(i) / 255.0, 20.0, expected);
    for (std::size_t c = 0; c < 3; ++c) CHECK(logits[3 * i + c] == doctest::Approx(expected[c]));
  }
}

TEST_CASE("a gater of the core's own kernels is captured like any other model") {
  const auto device = fake_gpu();
  constexpr ImageShape kImages{9, 8, 2};
  cuda::GaterNet net{kImages, 9, 8, false, 3};
  std::vector<float> weights(gater_weights(net));
  for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = 0.01F * static_cast<float>(i % 37) - 0.1F;
  ModelCapture capture(device, {"gater", kImages, 3, {1, 4}, "fp32"});
  CHECK(message_of([&] { capture.enqueue_gater(1); }, ErrorKind::kInput).find("no gater") != std::string::npos);
  const std::string wrong = message_of([&] { capture.hold_gater(net, {weights.data(), 5}); }, ErrorKind::kInput);
  CHECK(wrong.find("5 weights; expected " + std::to_string(weights.size())) != std::string::npos);
  CHECK(message_of([&] { capture.hold_gater({kImages, 4, 8, false, 3}, weights); }, ErrorKind::kInput).find("4 x 8") !=
        std::string::npos);
  capture.hold_gater(net, weights);
  message_of([&] { capture.reserve_activation(1); }, ErrorKind::kInput);  // it took that
  CHECK(message_of([&] { capture.enqueue_gater(5); }, ErrorKind::kInput).find("batch size 5") != std::string::npos);
  for (const std::size_t bucket : {std::size_t{1}, std::size_t{4}}) {
    capture.begin(bucket);
    capture.enqueue_gater(bucket);
    CHECK(capture.end() == cuda::NodeHistogram{{"kernel", 1}});
  }
  const auto session = capture.finish(nullptr)->open(Lane::kThroughput);
  for (std::size_t i = 0; i < session->input().size(); ++i) session->input()[i] = static_cast<std::uint8_t>(i * 7);
  const std::vector<std::uint8_t> images(session->input().begin(), session->input().end());
  const auto found = session->run(3);

  std::vector<std::byte> block(gater_bytes(net, 3));
  std::memcpy(block.data(), weights.data(), weights.size() * sizeof(float));
  std::vector<float> expected(9);
  const auto at = [](const void* memory) { return reinterpret_cast<std::uintptr_t>(memory); };
  testing::gater_reference(gater_run(net, 3, at(block.data()), at(images.data()), at(expected.data()), 3));
  CHECK(std::vector<float>(found.begin(), found.end()) == expected);
}

TEST_CASE("a capture gives the histogram of its nodes, and needs every bucket") {
  const auto device = fake_gpu();
  const auto model = expert_model(kShape, 3, 0);
  ModelCapture capture(device, {"expert", kShape, 3, {1, 4}, "fp16"});
  CHECK(capture.reserve_activation(1000) % alignof(float) == 0);
  message_of([&] { capture.reserve_activation(1); }, ErrorKind::kInput);
  capture.begin(4);
  enqueue_model(capture, model, 4);
  enqueue_model(capture, model, 4, "memset");
  CHECK(capture.end() == cuda::NodeHistogram{{"kernel", 1}, {"memset", 1}});
  CHECK(message_of([&] { capture.finish(nullptr); }, ErrorKind::kInput).find("batch size 1") != std::string::npos);
  capture.begin(1);
  enqueue_model(capture, model, 1);
  capture.end();
  const auto engine = capture.finish(nullptr);
  CHECK(engine->info().precision == "fp16");
  CHECK(engine->info().device == "Fake GPU");
  CHECK(engine->unroutable().empty());
  CHECK(engine->memory_use().device == 768 + 256 + 256 + 1000);  // control values, images, logits, activation
  CHECK(engine->memory_use().pinned == 0);
  const auto session = engine->open(Lane::kLatency);
  CHECK(engine->memory_use().pinned == 256 + 3 * sizeof(float));
  message_of([&] { capture.begin(1); }, ErrorKind::kInput);
  message_of([&] { capture.memory(); }, ErrorKind::kInput);
}

TEST_CASE("a capture that went wrong is discarded and tried again") {
  const auto device = fake_gpu();
  const auto model = expert_model(kShape, 3, 0);
  ModelCapture capture(device, {"expert", kShape, 3, {1}, "fp32"});
  message_of([&] { capture.end(); }, ErrorKind::kInput);
  message_of([&] { capture.begin(2); }, ErrorKind::kInput);
  capture.discard();
  capture.begin(1);
  message_of([&] { capture.begin(1); }, ErrorKind::kInput);
  enqueue_model(capture, model, 1);
  capture.discard();
  message_of([&] { capture.finish(nullptr); }, ErrorKind::kInput);
  device->faults().refuse_capture = true;
  capture.begin(1);
  const std::string refused = message_of([&] { capture.end(); }, ErrorKind::kEngineBuild);
  CHECK(refused.find("expert: cannot be captured at batch size 1: operation failed") == 0);
  device->faults().refuse_capture = false;
  capture.begin(1);
  enqueue_model(capture, model, 1);
  capture.end();
  std::fill_n(reinterpret_cast<std::uint8_t*>(capture.memory().input()), kShape.bytes(), kDark);
  const auto session = capture.finish(nullptr)->open(Lane::kLatency);
  std::fill_n(session->input().data(), kShape.bytes(), kDark);
  std::vector<float> expected(3);
  testing::score_position(kDark / 255.0, 20.0, expected);
  CHECK(session->run(1)[1] == doctest::Approx(expected[1]));
}

TEST_CASE("what the captured work needs lives as long as the graphs") {
  const auto device = fake_gpu();
  auto owner = std::make_shared<int>(1);
  const std::weak_ptr<int> watched = owner;
  ModelCapture capture(device, {"expert", kShape, 3, {1}, "fp32"});
  capture.begin(1);
  enqueue_model(capture, expert_model(kShape, 3, 0), 1);
  capture.end();
  auto engine = capture.finish(std::move(owner));
  auto session = engine->open(Lane::kLatency);
  engine.reset();
  CHECK_FALSE(watched.expired());
  session.reset();
  CHECK(watched.expired());
}

TEST_CASE("an allocation that fails at load names the model and the bytes, and leaves nothing behind") {
  for (int succeed = 0;; ++succeed) {
    CAPTURE(succeed);
    const auto device = fake_gpu();
    device->faults().allocations = succeed;
    std::string failed;
    try {
      const auto engine = capture_model(device, "squeezenet", expert_model(kShape, 3, 0));
      const auto session = engine->open(Lane::kThroughput);
    } catch (const Error& error) {
      CHECK(error.kind() == ErrorKind::kDevice);
      failed = error.what();
    }
    CHECK(device->state()->objects == 0);
    if (failed.empty()) {
      CHECK(succeed == 2);  // one arena, one staging block
      break;
    }
    const std::size_t bytes = succeed == 0 ? 768 + 256 + 256 : 256 + 16 * 3 * sizeof(float);
    CHECK(failed.find("squeezenet: needs " + std::to_string(bytes) + " bytes") != std::string::npos);
    CHECK(failed.find("out of memory") != std::string::npos);
  }
}

TEST_CASE("a launch that fails in the middle fails only its batch") {
  Rig rig;
  CHECK(rig.predict(kBright) == 1);
  rig.device->faults().launches = 1;  // the gater's; the expert's fails
  CHECK(message_of([&] { rig.predict(kBright); }, ErrorKind::kDevice) == "dear: the launch failed");
  CHECK(rig.predict(kBright) == 1);

  rig.door.shut();
  rig.scheduler->submit(0, Rig::image(kDark).data());
  rig.door.wait_for_arrivals(1);
  rig.device->faults().launches = 1;
  rig.scheduler->submit(1, Rig::image(kBright).data());
  CHECK(rig.collect(1).at(1).has_value());
  rig.scheduler->submit(2, Rig::image(kBright).data());
  CHECK_FALSE(rig.collect(1).at(2).has_value());
  rig.door.open();
  CHECK_FALSE(rig.collect(1).at(0).has_value());
}

TEST_CASE("a device that is lost closes the router and fails all that waits, with what to do") {
  Rig rig;
  rig.door.shut();
  for (std::uint64_t ticket = 0; ticket < 40; ++ticket) rig.scheduler->submit(ticket, Rig::image(kDark).data());
  rig.door.wait_for_arrivals(1);
  rig.device->faults().launches_before_loss = 0;
  rig.scheduler->submit(40, Rig::image(kBright).data());
  while (rig.device->usable()) std::this_thread::yield();
  rig.door.open();
  for (const auto& [ticket, failure] : rig.collect(41)) {
    CAPTURE(ticket);
    REQUIRE(failure.has_value());
    CHECK(failure->kind == ErrorKind::kDeviceLost);
    CHECK(failure->message.find("illegal memory access") != std::string::npos);
    CHECK(failure->message.find("restart the process") != std::string::npos);
  }
  CHECK(rig.scheduler->closing());
  CHECK(message_of([&] { rig.predict(kDark); }, ErrorKind::kDeviceLost).find("restart") != std::string::npos);
  message_of([&] { rig.scheduler->submit(99, Rig::image(kDark).data()); }, ErrorKind::kDeviceLost);
  rig.scheduler->close(false);
  CHECK(rig.scheduler->stats().in_flight == 0);
  message_of([&] { capture_model(rig.device, "late", expert_model(kShape, 3, 0)); }, ErrorKind::kDeviceLost);
}

TEST_CASE("the cheapest expert may start beside the gater, and answers only what the gater gives it") {
  const auto device = fake_gpu();
  std::atomic<int> cheap_runs{0};
  auto cheap = expert_model(kShape, 3, 0);
  cheap.compute = [&, compute = cheap.compute](auto image, auto logits) {
    ++cheap_runs;
    compute(image, logits);
  };
  SchedulerOptions options;
  options.warmup = false;
  options.speculate = true;
  const auto gater = capture_model(device, "gater", gater_model(kShape, 2));
  const std::vector<Expert> experts{{"cheap", capture_model(device, "cheap", cheap), 0.5F},
                                    {"dear", capture_model(device, "dear", expert_model(kShape, 3, 1)), 1.0F}};
  Scheduler speculating(gater, experts, options);
  options.speculate = false;
  Scheduler plain(gater, experts, options);
  const auto predict = [](Scheduler& scheduler, std::uint8_t level, std::vector<float>& probabilities) {
    std::vector<float> gater_logits(2);
    std::int64_t route = -1;
    float latency = 0;
    scheduler.predict({Rig::image(level).data(), 1, kShape.bytes()},
                      {probabilities.data(), gater_logits.data(), &route, &latency}, nullptr);
    return route;
  };
  std::vector<float> found(3);
  std::vector<float> expected(3);
  for (const std::uint8_t level : {kDark, kBright, kDark}) {
    const int before = cheap_runs;
    const std::int64_t route = predict(speculating, level, found);
    CHECK(cheap_runs == before + 1);  // for nothing where the image is bright
    CHECK(route == predict(plain, level, expected));
    CHECK(found == expected);
  }
  CHECK(speculating.stats().images == std::vector<std::uint64_t>{2, 1});

  device->faults().launches = 1;  // the gater's fails, with the cheap expert under way
  message_of([&] { predict(speculating, kDark, found); }, ErrorKind::kDevice);
  CHECK(predict(speculating, kDark, found) == 0);
}

TEST_CASE("speculation needs a device that works on its own") {
  SchedulerOptions options;
  options.speculate = true;
  const auto on_cpu = [&] {
    Scheduler(testing::fake_gater(kShape, 2),
              {{"cheap", testing::fake_expert(kShape, 3, 0), 0.5F}, {"dear", testing::fake_expert(kShape, 3, 1), 1.0F}},
              options);
  };
  CHECK(message_of(on_cpu, ErrorKind::kInput).find("speculate") != std::string::npos);
  const auto device = fake_gpu();
  const auto twice = capture_model(device, "expert", expert_model(kShape, 3, 0));
  const auto one_model = [&] {
    Scheduler(capture_model(device, "gater", gater_model(kShape, 2)), {{"a", twice, 0.5F}, {"b", twice, 1.0F}},
              options);
  };
  CHECK(message_of(one_model, ErrorKind::kInput).find("twice") != std::string::npos);
}

TEST_CASE("a driver older than the runtime is refused with both versions") {
  const std::string message =
      message_of([] { FakeStreamDevice(FakeStreamDevice::some_gpu(12040, 13000)); }, ErrorKind::kDevice);
  CHECK(message.find("12.4") != std::string::npos);
  CHECK(message.find("13.0") != std::string::npos);
}

TEST_CASE("a session that goes gives its page-locked memory back") {
  const auto engine = capture_model(fake_gpu(), "m", expert_model(kShape, 3, 0));
  engine->open(Lane::kLatency);
  CHECK(engine->memory_use().pinned == 0);
  CHECK(engine->info().buckets.filled_by(3) == 3);  // batches are padded
}

TEST_CASE("of a start that failed nothing is left to run on") {
  const auto device = fake_gpu();
  const auto engine = capture_model(device, "m", expert_model(kShape, 3, 0));
  const auto session = engine->open(Lane::kLatency);
  std::fill_n(session->input().data(), kShape.bytes(), std::uint8_t{7});
  device->faults().launches = 0;
  message_of([&] { session->run(1); }, ErrorKind::kDevice);
  // The copy is done: a pending one would read the memory that the session gives back.
  CHECK(*reinterpret_cast<const std::uint8_t*>(engine->memory().input()) == 7);
}

TEST_CASE("of a lost device every session says so") {
  const auto device = fake_gpu();
  const auto engine = capture_model(device, "m", expert_model(kShape, 3, 0));
  const auto one = engine->open(Lane::kThroughput);
  const auto other = engine->open(Lane::kThroughput);
  device->faults().launches_before_loss = 0;
  message_of([&] { one->run(1); }, ErrorKind::kDeviceLost);
  message_of([&] { other->run(1); }, ErrorKind::kDeviceLost);
}

TEST_CASE("a lone image that loses the device closes the router") {
  Rig rig;
  rig.device->faults().launches_before_loss = 0;
  message_of([&] { rig.predict(kDark); }, ErrorKind::kDeviceLost);
  CHECK(rig.scheduler->closing());
}

TEST_CASE("a bucket whose second capture was discarded is missing") {
  ModelCapture capture(fake_gpu(), {"m", kShape, 3, {1}, "fp32"});
  capture.begin(1);
  enqueue_model(capture, expert_model(kShape, 3, 0), 1);
  capture.end();
  capture.begin(1);
  capture.discard();
  const std::string said = message_of([&] { capture.finish(nullptr); }, ErrorKind::kInput);
  CHECK(said.find("not captured at batch size 1") != std::string::npos);
}

TEST_CASE("a model with nodes that no conditional body may hold is not for the device to route") {
  for (const char* kind : {"host", "eventRecord", "waitEvent", "extSemSignal", "extSemWait", "memAlloc", "memFree",
                           "batchMemOp", "conditional", "memcpyPageable", "other"}) {
    const std::string why = capture_model(fake_gpu(), "m", expert_model(kShape, 3, 0), kind)->unroutable();
    CHECK(why.find(kind) != std::string::npos);
  }
  CHECK(capture_model(fake_gpu(), "m", expert_model(kShape, 3, 0), "memset")->unroutable().empty());
}
