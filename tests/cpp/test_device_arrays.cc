// Images and answers that lie on the device, on the fake one.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <thread>
#include <vector>

#include "backends/cuda/device_input.h"
#include "backends/cuda/device_output.h"
#include "backends/pipeline.h"
#include "device_routed_rig.h"
#include "fake_backend.h"

using namespace trt_moe;
using testing::Answers;
using testing::check_same;
using testing::failure_of;
using testing::FakeStreamDevice;
using testing::kClasses;
using testing::kExperts;
using testing::kShape;
using testing::Rig;
using testing::some_levels;

TEST_CASE("page-locked images are read where they are, all of them or some") {
  Rig rig;
  rig.route_on_device();
  const std::vector<std::uint8_t> levels = some_levels(20, 8);
  const auto block = rig.device->allocate(cuda::MemoryKind::kPinned, levels.size() * kShape.bytes());
  auto* const pixels = reinterpret_cast<std::uint8_t*>(block->host());
  const std::vector<std::uint8_t> images = testing::pixels_of(kShape, levels);
  std::copy(images.begin(), images.end(), pixels);
  const auto part = [&](std::size_t begin, std::size_t count) {
    Answers answers(count);
    const ImageBatchView view{pixels + begin * kShape.bytes(), count, kShape.bytes(), true};
    rig.scheduler.predict(view, answers.rows(), nullptr);
    const auto first = levels.begin() + static_cast<std::ptrdiff_t>(begin);
    check_same(answers, rig.predict({first, first + static_cast<std::ptrdiff_t>(count)}));
  };
  for (const std::size_t count : {1U, 3U, 16U, 20U}) part(0, count);
  part(1, 15);
  part(7, 1);
}

TEST_CASE("page-locked images that others predict and submit beside, and that are verified, stay what they are") {
  Rig rig(FakeStreamDevice::some_gpu(), SchedulerOptions{.verify_below = 0.9F});
  rig.route_on_device();
  const std::vector<std::uint8_t> levels = some_levels(16, 4);
  const Answers expected = rig.predict(levels);
  CHECK(rig.scheduler.stats().passed_on[0] > 0);
  const auto block = rig.device->allocate(cuda::MemoryKind::kPinned, levels.size() * kShape.bytes());
  const std::vector<std::uint8_t> images = testing::pixels_of(kShape, levels);
  std::memcpy(block->host(), images.data(), images.size());
  std::atomic<bool> stop{false};
  std::thread others([&] {
    std::vector<SubmittedRequest*> done;
    const std::vector<std::uint8_t> dark(kShape.bytes(), 0);
    while (!stop) {
      rig.predict(std::vector<std::uint8_t>(16, 255));
      rig.scheduler.submit(0, dark.data());
      rig.scheduler.take_completed(done);
      for (SubmittedRequest* request : done) rig.scheduler.recycle(request);
    }
  });
  for (int round = 0; round < 300; ++round) {
    Answers answers(levels.size());
    const auto* const pixels = reinterpret_cast<const std::uint8_t*>(block->host());
    rig.scheduler.predict({pixels, levels.size(), kShape.bytes(), true}, answers.rows(), nullptr);
    if (answers.routes != expected.routes || answers.gater != expected.gater) {
      FAIL_CHECK("another caller's images were answered");
      break;
    }
  }
  stop = true;
  others.join();
}

TEST_CASE("images on the device are read there, after what is on their stream") {
  Rig rig;
  rig.route_on_device();
  const std::vector<std::uint8_t> levels = some_levels(21, 5);
  const auto images = rig.device->allocate(cuda::MemoryKind::kDevice, levels.size() * kShape.bytes());
  rig.device->state()->of_others.insert(images->device());
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

TEST_CASE("a pipeline answers images on the device, wherever they are routed and verified") {
  const std::vector<std::uint8_t> levels = some_levels(21, 6);
  for (const bool device_routed : {true, false}) {
    for (const float verify_below : {0.0F, 0.9F}) {
      CAPTURE(device_routed);
      CAPTURE(verify_below);
      Rig rig(FakeStreamDevice::some_gpu(), SchedulerOptions{.verify_below = verify_below});
      Pipeline pipeline(rig.gater, rig.scheduled(), SchedulerOptions{.verify_below = verify_below, .max_batch = 8},
                        device_routed);
      CHECK(pipeline.routes_on_device() == device_routed);
      const auto images = rig.device->allocate(cuda::MemoryKind::kDevice, levels.size() * kShape.bytes());
      const auto stream = rig.device->open_stream();
      // The producer has enqueued its work, but nothing of it has run.
      dynamic_cast<testing::FakeStream&>(*stream).enqueue("kernel", [&] {
        const std::vector<std::uint8_t> pixels = testing::pixels_of(kShape, levels);
        std::memcpy(reinterpret_cast<void*>(images->device()), pixels.data(), pixels.size());
      });
      Answers answers(levels.size());
      pipeline.predict_there({images->device(), levels.size(), kShape.bytes(), stream->handle()}, answers.rows(),
                             nullptr, nullptr);
      check_same(answers, rig.predict(levels));
      CHECK((pipeline.stats().passed_on[0] > 0) == (verify_below > 0));
      const bool through_host = !device_routed || verify_below > 0;
      CHECK(pipeline.memory_use().at("images for the host").pinned == (through_host ? 8 * kShape.bytes() : 0));
      CHECK((pipeline.input_block(3) != nullptr) == device_routed);
    }
  }
}

TEST_CASE("images that come to the host in parts are polled for, and closing lets all of them be answered") {
  static std::atomic<int> polls;
  polls = 0;
  Rig rig;
  SchedulerOptions options;
  options.max_batch = 2;
  Pipeline pipeline(rig.gater, rig.scheduled(), options, false);
  const std::vector<std::uint8_t> levels = some_levels(40'000, 7);
  const std::vector<std::uint8_t> pixels = testing::pixels_of(kShape, levels);
  const auto images = rig.device->allocate(cuda::MemoryKind::kDevice, pixels.size());
  std::memcpy(reinterpret_cast<void*>(images->device()), pixels.data(), pixels.size());
  Answers answers(levels.size());
  std::thread closer([&] {
    while (pipeline.stats().in_flight == 0) std::this_thread::yield();
    pipeline.close(false);
  });
  pipeline.predict_there({images->device(), levels.size(), kShape.bytes()}, answers.rows(), [] { ++polls; }, nullptr);
  closer.join();
  CHECK(std::count(answers.routes.begin(), answers.routes.end(), -1) == 0);
  CHECK(pipeline.stats().in_flight == 0);
  CHECK(polls > 0);
}

TEST_CASE("a pipeline refuses images and answers that are nowhere on its device") {
  Rig rig;
  Pipeline pipeline(rig.gater, rig.scheduled(), {}, true);
  Answers answers(1);
  const auto refused = [&](Pipeline& by, std::uintptr_t address, std::size_t count) {
    const Failure failure =
        failure_of([&] { by.predict_there({address, count, kShape.bytes()}, answers.rows(), nullptr, nullptr); });
    CHECK(failure.kind == ErrorKind::kInput);
    return failure.message;
  };
  const auto there = rig.device->allocate(cuda::MemoryKind::kDevice, kShape.bytes());
  const std::vector<std::uint8_t> elsewhere(kShape.bytes());
  CHECK(refused(pipeline, 0, 1).find("expected at least one") != std::string::npos);
  CHECK(refused(pipeline, there->device(), 0).find("found 0 images") != std::string::npos);
  CHECK(refused(pipeline, reinterpret_cast<std::uintptr_t>(elsewhere.data()), 1).find("no memory of Fake GPU") !=
        std::string::npos);
  CHECK(failure_of([&] { pipeline.device_rows(0); }).kind == ErrorKind::kInput);

  std::vector<Expert> on_cpu{{"cheap", testing::fake_expert(kShape, kClasses, 0), 0.5F},
                             {"dear", testing::fake_expert(kShape, kClasses, 1), 1.0F}};
  Pipeline cpu(testing::fake_gater(kShape, 2), on_cpu, {}, true);
  CHECK(cpu.plan_reason() == "the models run on the CPU");
  CHECK(cpu.memory_use().empty());
  CHECK(cpu.input_block(1) == nullptr);
  CHECK(refused(cpu, there->device(), 1).find("for models on the CPU") != std::string::npos);
  CHECK(failure_of([&] { cpu.device_rows(1); }).message.find("of models on the CPU") != std::string::npos);
}

TEST_CASE("answers stay on the device where they are asked to") {
  const std::vector<std::uint8_t> levels = some_levels(21, 9);
  const std::vector<std::uint8_t> images = testing::pixels_of(kShape, levels);
  Rig rig;
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

TEST_CASE("images of another device, or of none, are refused") {
  Rig rig;
  const cuda::DeviceInput input(rig.device, kShape.bytes(), 2);
  const std::vector<std::uint8_t> elsewhere(kShape.bytes());
  const DeviceImages images{reinterpret_cast<std::uintptr_t>(elsewhere.data()), 1, kShape.bytes()};
  const Failure failure = failure_of([&] { input.expect_on_device(images); });
  CHECK(failure.kind == ErrorKind::kInput);
  CHECK(failure.message.find("in no memory of Fake GPU") != std::string::npos);
  const auto there = rig.device->allocate(cuda::MemoryKind::kDevice, kShape.bytes());
  input.expect_on_device({there->device(), 1, kShape.bytes()});
}

TEST_CASE("images that cannot be brought to the host leave the next ones their memory") {
  Rig rig;
  cuda::DeviceInput input(rig.device, kShape.bytes(), 2);
  const auto there = rig.device->allocate(cuda::MemoryKind::kDevice, kShape.bytes());
  const DeviceImages whole{there->device(), 1, kShape.bytes()};
  const DeviceImages torn{there->device(), 2, kShape.bytes()};  // beyond the memory
  for (int i = 0; i < 3; ++i) {
    CHECK(failure_of([&] { cuda::DeviceInput::OnHost(input, torn); }).kind == ErrorKind::kDevice);
    CHECK(cuda::DeviceInput::OnHost(input, whole).view().count == 1);
  }
  CHECK(input.memory_use().pinned == 2 * kShape.bytes());
}

TEST_CASE("memory of answers is used again once nobody holds it, if it is not far too large") {
  Rig rig;
  cuda::DeviceOutputs outputs(rig.device, kExperts, kClasses);
  std::optional<cuda::DeviceOutputs::Rows> first = outputs.take(8);
  const std::uintptr_t address = first->rows.routes;
  const cuda::DeviceOutputs::Rows second = outputs.take(8);
  CHECK(second.rows.routes != address);
  first.reset();
  CHECK(outputs.take(4).rows.routes == address);
  CHECK(outputs.take(1000).rows.routes != address);  // too small
  const std::size_t with_large = outputs.memory_use().device;
  CHECK(with_large > 1000 * kClasses * sizeof(float));
  const cuda::DeviceOutputs::Rows one = outputs.take(8);
  CHECK(one.rows.routes == address);
  const cuda::DeviceOutputs::Rows two = outputs.take(8);  // the large one is not wasted on it
  CHECK(outputs.memory_use().device > with_large);
}

TEST_CASE("memory of answers that were held at a time goes, all but a little, when they are dropped") {
  Rig rig;
  const int before = rig.device->state()->objects;
  auto outputs = std::make_unique<cuda::DeviceOutputs>(rig.device, kExperts, kClasses);
  std::vector<cuda::DeviceOutputs::Rows> held;
  for (int i = 0; i < 1000; ++i) held.push_back(outputs->take(8));
  const std::size_t one = outputs->memory_use().device / 1000;
  held.clear();
  held.push_back(outputs->take(8));
  CHECK(outputs->memory_use().device == 9 * one);
  CHECK(rig.device->state()->objects == before + 9);
  // What is held outlives what gave it, and is freed then.
  outputs.reset();
  CHECK(rig.device->state()->objects == before + 1);
  held.clear();
  CHECK(rig.device->state()->objects == before);
}

TEST_CASE("memory for answers that is not there is named") {
  Rig rig;
  rig.device->faults().allocations = 0;
  cuda::DeviceOutputs none(rig.device, kExperts, kClasses);
  const Failure failure = failure_of([&] { none.take(8); });
  CHECK(failure.kind == ErrorKind::kDevice);
  CHECK(failure.message.find("answers on the device: needs") != std::string::npos);
}

TEST_CASE("a pipeline has what it was asked for: speculation, input blocks, what its models hold") {
  std::atomic<int> runs_of_cheap{0};
  testing::FakeModel cheap = testing::expert_model(kShape, kClasses, 0);
  cheap.compute = [&, compute = cheap.compute](auto image, auto logits) {
    ++runs_of_cheap;
    compute(image, logits);
  };
  const Rig rig(FakeStreamDevice::some_gpu(), {}, testing::gater_model(kShape, kExperts), cheap);
  SchedulerOptions options;
  options.speculate = true;
  Pipeline pipeline(rig.gater, rig.scheduled(), options, true);
  const auto block = pipeline.input_block(3);
  REQUIRE(block);
  CHECK(block->host() != nullptr);
  CHECK(block->size() == 3 * kShape.bytes());
  const int before = runs_of_cheap;
  const auto waited = pipeline.waited();
  Answers answers(1);
  const std::vector<std::uint8_t> bright(kShape.bytes(), 250);
  pipeline.predict({bright.data(), 1, kShape.bytes()}, answers.rows(), nullptr);
  CHECK(runs_of_cheap == before + 1);
  CHECK(pipeline.waited() > waited);
  CHECK(pipeline.memory_use().at("cheap").pinned > 0);

  pipeline.set_verify_below(0.9F);
  const auto there = rig.device->allocate(cuda::MemoryKind::kDevice, kShape.bytes());
  const auto kept = pipeline.device_rows(1);
  const DeviceImages images{there->device(), 1, kShape.bytes()};
  CHECK(failure_of([&] { pipeline.predict_there(images, answers.rows(), nullptr, &kept.rows); }).kind ==
        ErrorKind::kInput);
}
