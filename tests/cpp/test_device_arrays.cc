// Images and answers that lie on the device, on the fake one.
#include <doctest/doctest.h>

#include <cstring>
#include <optional>
#include <vector>

#include "backends/cuda/device_input.h"
#include "backends/cuda/device_output.h"
#include "device_routed_rig.h"

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
  const std::vector<std::uint8_t> images = testing::pixels_of(kShape, levels);
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
