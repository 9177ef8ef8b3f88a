// Second looks at the mirrored image.
#include <doctest/doctest.h>

#include <cmath>
#include <memory>
#include <thread>
#include <vector>

#include "core/mirror.h"
#include "device_routed_rig.h"

using namespace trt_moe;
using testing::Answers;
using testing::FakeModel;
using testing::FakeStreamDevice;
using testing::gater_model;
using testing::kClasses;
using testing::kExperts;
using testing::kShape;
using testing::Rig;
using testing::score_position;

namespace {

// Sees the left column only, and the less sure the nearer it is to a class's border.
FakeModel looks_left() {
  return {kShape, kClasses, [](auto image, auto logits) { score_position(image[0] / 255.0, 20.0, logits); }};
}

std::vector<float> probabilities_of_left(std::uint8_t left) {
  std::vector<float> values(kClasses);
  score_position(left / 255.0, 20.0, values);
  double sum = 0;
  for (float& value : values) sum += value = std::exp(value);
  for (float& value : values) value = static_cast<float>(value / sum);
  return values;
}

// The images [left right; left right].
std::vector<std::uint8_t> images_of(const std::vector<std::pair<std::uint8_t, std::uint8_t>>& columns) {
  std::vector<std::uint8_t> pixels;
  for (const auto& [left, right] : columns) pixels.insert(pixels.end(), {left, right, left, right});
  return pixels;
}

SchedulerOptions by_mirror(float below) {
  SchedulerOptions options;
  options.verify_below = below;
  options.verify_by = VerifyBy::kMirror;
  return options;
}

Answers predict(Scheduler& scheduler, const std::vector<std::uint8_t>& images) {
  Answers answers(images.size() / kShape.bytes());
  scheduler.predict({images.data(), images.size() / kShape.bytes(), kShape.bytes()}, answers.rows(), nullptr);
  return answers;
}

}  // namespace

TEST_CASE("rows are mirrored pixel by pixel") {
  std::vector<std::uint8_t> found(6);
  const std::vector<std::uint8_t> image{1, 2, 3, 4, 5, 6};
  copy_mirrored(image.data(), {2, 3, 1}, found.data());
  CHECK(found == std::vector<std::uint8_t>{3, 2, 1, 6, 5, 4});
  copy_mirrored(image.data(), {1, 2, 3}, found.data());
  CHECK(found == std::vector<std::uint8_t>{4, 5, 6, 1, 2, 3});
  copy_mirrored(image.data(), {2, 1, 3}, found.data());
  CHECK(found == image);
}

TEST_CASE("images of four channels are mirrored pixel by pixel") {
  std::vector<std::uint8_t> found(8);
  const std::vector<std::uint8_t> image{1, 2, 3, 4, 5, 6, 7, 8};
  copy_mirrored(image.data(), {1, 2, 4}, found.data());
  CHECK(found == std::vector<std::uint8_t>{5, 6, 7, 8, 1, 2, 3, 4});
}

TEST_CASE("an unsure expert's answer is the mean of its looks at the image and at its mirror image, on every way") {
  // Dark images, which are the cheap expert's: of the middle of a class, and of the border between two.
  const std::vector<std::uint8_t> images = images_of({{25, 70}, {51, 0}, {25, 51}, {51, 25}});
  for (const bool device_routed : {false, true}) {
    for (const bool speculate : {false, true}) {
      SchedulerOptions options = by_mirror(0.6F);
      options.speculate = speculate && !device_routed;
      Rig rig(FakeStreamDevice::some_gpu(), options, gater_model(kShape, kExperts), looks_left());
      if (device_routed) rig.route_on_device(speculate);
      const Answers answers = predict(rig.scheduler, images);
      CHECK(answers.routes == std::vector<std::int64_t>{0, 0, 0, 0});
      for (std::size_t i = 0; i < 4; ++i) {
        const std::vector<float> first = probabilities_of_left(images[4 * i]);
        const std::vector<float> second = probabilities_of_left(images[4 * i + 1]);
        const bool unsure = images[4 * i] == 51;
        const Answers alone = predict(rig.scheduler, {images.begin() + 4 * static_cast<std::ptrdiff_t>(i),
                                                      images.begin() + 4 * static_cast<std::ptrdiff_t>(i + 1)});
        for (std::size_t c = 0; c < kClasses; ++c) {
          const float expected = unsure ? (first[c] + second[c]) / 2.0F : first[c];
          CHECK(answers.probabilities[kClasses * i + c] == doctest::Approx(expected).epsilon(1e-5));
          CHECK(alone.probabilities[c] == doctest::Approx(expected).epsilon(1e-5));
        }
        CHECK(answers.latency[i] > 0.0F);
      }
      // Twice each, together and alone.
      CHECK(rig.scheduler.stats().images == std::vector<std::uint64_t>{8, 0, 0});
      CHECK(rig.scheduler.stats().passed_on == std::vector<std::uint64_t>{4, 0, 0});
      CHECK(rig.scheduler.stats().in_flight == 0);
    }
  }
}

TEST_CASE("nobody looks three times, and the dearest expert once") {
  for (const bool device_routed : {false, true}) {
    Rig rig(FakeStreamDevice::some_gpu(), by_mirror(1.1F));
    if (device_routed) rig.route_on_device();
    CHECK(rig.predict({5, 130, 250}).routes == std::vector<std::int64_t>{0, 1, 2});
    CHECK(rig.predict({5}).routes[0] == 0);
    CHECK(rig.scheduler.stats().images == std::vector<std::uint64_t>{2, 1, 1});
    CHECK(rig.scheduler.stats().passed_on == std::vector<std::uint64_t>{2, 1, 0});
  }
}

TEST_CASE("a second look in the mirror that fails, or is cut short, loses no image") {
  for (const bool shared_workers : {false, true}) {
    // Gives no numbers for images whose left column is black: of [51 0] the second look fails.
    FakeModel cheap{kShape, kClasses, [](auto image, auto logits) {
                      looks_left().compute(image, logits);
                      if (image[0] == 0) logits[0] = std::nanf("");
                    }};
    FakeModel gater = gater_model(kShape, 2);
    FakeModel dear = testing::expert_model(kShape, kClasses, 1);
    for (FakeModel* model : {&cheap, &gater, &dear}) model->on_host = shared_workers;
    const auto engine = std::make_shared<testing::FakeEngine>(cheap);
    SchedulerOptions options = by_mirror(1.1F);
    options.warmup = false;
    Scheduler scheduler(std::make_shared<testing::FakeEngine>(gater),
                        {{"cheap", engine, 0.5F}, {"dear", std::make_shared<testing::FakeEngine>(dear), 1.0F}},
                        options);
    const auto submit = [&](std::size_t count, std::uint8_t right) {
      const std::vector<std::uint8_t> image = images_of({{51, right}});
      for (std::uint64_t ticket = 0; ticket < count; ++ticket) scheduler.submit(ticket, image.data());
    };
    const auto failures_of = [&](std::size_t count) {
      std::vector<SubmittedRequest*> done;
      std::size_t failed = 0;
      for (std::size_t taken = 0; taken < count; taken += done.size()) {
        scheduler.take_completed(done);
        REQUIRE(!done.empty());
        for (SubmittedRequest* request : done) {
          if (request->failure()) ++failed;
          scheduler.recycle(request);
        }
      }
      return failed;
    };

    submit(20, 30);
    CHECK(failures_of(20) == 0);
    CHECK(scheduler.stats().passed_on == std::vector<std::uint64_t>{20, 0});
    submit(20, 0);
    CHECK(failures_of(20) == 20);
    CHECK(testing::failure_of([&] { predict(scheduler, images_of({{51, 0}})); }).kind == ErrorKind::kModelOutput);
    CHECK(testing::failure_of([&] { predict(scheduler, images_of({{51, 30}, {51, 0}})); }).kind ==
          ErrorKind::kModelOutput);
    CHECK(scheduler.stats().in_flight == 0);

    engine->gate.shut();
    submit(20, 30);
    std::thread closer([&] { scheduler.close(true); });
    while (!scheduler.closing()) std::this_thread::yield();
    engine->gate.open();
    failures_of(20);
    closer.join();
    CHECK(scheduler.stats().in_flight == 0);
  }
}

TEST_CASE("no more is seen twice at a time than may wait") {
  SchedulerOptions options = by_mirror(1.1F);
  options.max_queue = 4;
  Rig device(FakeStreamDevice::some_gpu(), options, gater_model(kShape, kExperts), looks_left());
  device.route_on_device();
  Rig host(FakeStreamDevice::some_gpu(), by_mirror(1.1F), gater_model(kShape, kExperts), looks_left());
  const std::vector<std::uint8_t> levels = testing::some_levels(16, 12);
  testing::check_same(device.predict(levels), host.predict(levels));
  CHECK(device.scheduler.stats().images == host.scheduler.stats().images);
  CHECK(device.scheduler.stats().passed_on == host.scheduler.stats().passed_on);
}

TEST_CASE("submitted images are seen in the mirror as well") {
  Rig rig(FakeStreamDevice::some_gpu(), by_mirror(0.6F), gater_model(kShape, kExperts), looks_left());
  const std::vector<std::uint8_t> image = images_of({{51, 0}});
  rig.scheduler.submit(7, image.data());
  std::vector<SubmittedRequest*> done;
  rig.scheduler.take_completed(done);
  REQUIRE(done.size() == 1);
  const std::vector<float> first = probabilities_of_left(51);
  const std::vector<float> second = probabilities_of_left(0);
  for (std::size_t c = 0; c < kClasses; ++c) {
    CHECK(done[0]->probabilities()[c] == doctest::Approx((first[c] + second[c]) / 2.0F).epsilon(1e-5));
  }
  rig.scheduler.recycle(done[0]);
}
