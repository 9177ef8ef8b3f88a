// What every backend must do, run on each of them.
#include <doctest/doctest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <thread>
#include <vector>

#include "backends/registry.h"
#include "core/error.h"
#include "core/model_runner.h"
#include "core/scheduler.h"
#include "fake_backend.h"
#include "fake_captured_model.h"
#ifdef TRT_MOE_TEST_ON_GPU
#include "toy_models.h"
#endif

using namespace trt_moe;

namespace {

constexpr ImageShape kShape{8, 8, 1};
constexpr std::size_t kExperts = 2;
constexpr std::size_t kClasses = 3;

struct FakeBackendUnderTest {
  static std::shared_ptr<Engine> gater() { return testing::fake_gater(kShape, kExperts); }
  static std::shared_ptr<Engine> expert(std::size_t index) { return testing::fake_expert(kShape, kClasses, index); }
};

// The CUDA backend's host-routed plan, on a device that is none.
struct CapturedUnderTest {
  static std::shared_ptr<Engine> capture(const std::string& name, const testing::FakeModel& model) {
    return testing::capture_model(std::make_shared<testing::FakeStreamDevice>(testing::FakeStreamDevice::some_gpu()),
                                  name, model);
  }
  static std::shared_ptr<Engine> gater() { return capture("gater", testing::gater_model(kShape, kExperts)); }
  static std::shared_ptr<Engine> expert(std::size_t index) {
    return capture("expert", testing::expert_model(kShape, kClasses, index));
  }
};

struct OpenVinoUnderTest {
  static std::shared_ptr<Engine> load(const std::string& name) {
    const char* const folder = std::getenv("TRT_MOE_TINY_BUNDLE");
    REQUIRE_MESSAGE(folder != nullptr, "set TRT_MOE_TINY_BUNDLE to a folder of tests/support/write_tiny_bundle.py");
    std::ifstream file(std::string(folder) + "/" + name + ".onnx", std::ios::binary);
    REQUIRE(file.good());
    const std::string onnx{std::istreambuf_iterator<char>(file), {}};
    return make_backend("openvino")->load(onnx, {"fp32", 0, "", {1, 4, 16}});
  }
  static std::shared_ptr<Engine> gater() { return load("gater"); }
  static std::shared_ptr<Engine> expert(std::size_t index) { return load("expert-" + std::to_string(index)); }
};

#ifdef TRT_MOE_TEST_ON_GPU
struct CudaUnderTest {
  static std::shared_ptr<Engine> gater() { return testing::capture_toy("gater", testing::toy_gater(kShape, kExperts)); }
  static std::shared_ptr<Engine> expert(std::size_t index) {
    return testing::capture_toy("expert", testing::toy_expert(kShape, kClasses, index));
  }
};
#endif

std::vector<std::uint8_t> grey_images(const std::vector<int>& levels) {
  std::vector<std::uint8_t> pixels;
  for (const int level : levels) pixels.insert(pixels.end(), kShape.bytes(), static_cast<std::uint8_t>(level));
  return pixels;
}

std::vector<int> some_levels(std::size_t count) {
  std::vector<int> levels;
  for (std::size_t i = 0; i < count; ++i) levels.push_back(static_cast<int>((i * 37 + 11) % 256));
  return levels;
}

void expect_logits(std::span<const float> found, int level, double scale, std::size_t outputs) {
  std::vector<float> expected(outputs);
  testing::score_position(level / 255.0, scale, expected);
  for (std::size_t k = 0; k < outputs; ++k) CHECK(found[k] == doctest::Approx(expected[k]).epsilon(1e-4));
}

}  // namespace

#if defined(TRT_MOE_TEST_ON_GPU)
#define BACKENDS_UNDER_TEST CudaUnderTest
#elif defined(TRT_MOE_WITH_OPENVINO)
#define BACKENDS_UNDER_TEST FakeBackendUnderTest, CapturedUnderTest, OpenVinoUnderTest
#else
#define BACKENDS_UNDER_TEST FakeBackendUnderTest, CapturedUnderTest
#endif

TEST_CASE_TEMPLATE("an engine says what it takes and gives", Backend, BACKENDS_UNDER_TEST) {
  const auto gater = Backend::gater();
  CHECK(gater->info().input == kShape);
  CHECK(gater->info().outputs == kExperts);
  CHECK(gater->info().precision == "fp32");
  CHECK(gater->info().parallel >= 1);
  CHECK(gater->info().buckets.largest() == 16);
  CHECK_FALSE(gater->info().device.empty());
  CHECK(Backend::expert(1)->info().outputs == kClasses);
}

TEST_CASE_TEMPLATE("both lanes and every bucket give the same logits to the last bit", Backend, BACKENDS_UNDER_TEST) {
  const auto engine = Backend::expert(1);
  const std::vector<int> levels = some_levels(16);
  const auto pixels = grey_images(levels);
  std::vector<float> alone;
  const auto latency = engine->open(Lane::kLatency);
  for (std::size_t i = 0; i < levels.size(); ++i) {
    std::copy_n(pixels.data() + i * kShape.bytes(), kShape.bytes(), latency->input().data());
    const auto logits = latency->run(1);
    REQUIRE(logits.size() == kClasses);
    expect_logits(logits, levels[i], 40.0, kClasses);
    alone.insert(alone.end(), logits.begin(), logits.end());
  }
  const auto session = engine->open(Lane::kThroughput);
  CHECK(session->input().size() == 16 * kShape.bytes());
  for (const std::size_t bucket : engine->info().buckets.sizes()) {
    std::copy_n(pixels.data(), bucket * kShape.bytes(), session->input().data());
    const auto logits = session->run(bucket);
    REQUIRE(logits.size() == bucket * kClasses);
    CHECK(std::equal(logits.begin(), logits.end(), alone.begin()));
  }
}

TEST_CASE_TEMPLATE("sessions of one engine do not disturb each other", Backend, BACKENDS_UNDER_TEST) {
  const auto engine = Backend::expert(0);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      const auto session = engine->open(t == 0 ? Lane::kLatency : Lane::kThroughput);
      for (int round = 0; round < 50; ++round) {
        const int level = (t * 83 + round * 5) % 256;
        std::fill_n(session->input().data(), kShape.bytes(), static_cast<std::uint8_t>(level));
        const auto logits = session->run(1);
        std::vector<float> expected(kClasses);
        testing::score_position(level / 255.0, 20.0, expected);
        for (std::size_t k = 0; k < kClasses; ++k) {
          if (std::abs(logits[k] - expected[k]) > 1e-3F) ++wrong;
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(wrong == 0);
}

TEST_CASE_TEMPLATE("a session outlives the last handle to its engine", Backend, BACKENDS_UNDER_TEST) {
  if constexpr (std::is_same_v<Backend, FakeBackendUnderTest>) return;  // the fake's sessions borrow their engine
  auto engine = Backend::expert(0);
  const auto session = engine->open(Lane::kThroughput);
  engine.reset();
  std::fill_n(session->input().data(), kShape.bytes(), std::uint8_t{100});
  expect_logits(session->run(1), 100, 20.0, kClasses);
}

TEST_CASE_TEMPLATE("a model runner keeps the order of any number of images", Backend, BACKENDS_UNDER_TEST) {
  ModelRunner runner(Backend::expert(0));
  for (const std::size_t count : {1U, 2U, 5U, 16U, 67U}) {
    const std::vector<int> levels = some_levels(count);
    const auto pixels = grey_images(levels);
    std::vector<float> logits(count * kClasses);
    runner.logits({pixels.data(), count, kShape.bytes()}, logits.data(), nullptr);
    for (std::size_t i = 0; i < count; ++i) {
      expect_logits(std::span(logits).subspan(i * kClasses, kClasses), levels[i], 20.0, kClasses);
    }
  }
  std::vector<double> times(5);
  runner.time(grey_images({50}).data(), 1, times, nullptr);
  for (const double time : times) CHECK(time > 0.0);
}

TEST_CASE_TEMPLATE("the scheduler routes on it, the same alone and together", Backend, BACKENDS_UNDER_TEST) {
  Scheduler scheduler(Backend::gater(), {{"cheap", Backend::expert(0), 0.5F}, {"dear", Backend::expert(1), 1.0F}}, {});
  const std::size_t count = 53;
  const std::vector<int> levels = some_levels(count);
  const auto pixels = grey_images(levels);
  std::vector<float> probabilities(count * kClasses);
  std::vector<float> gater(count * kExperts);
  std::vector<std::int64_t> routes(count);
  std::vector<float> latency(count);
  scheduler.predict({pixels.data(), count, kShape.bytes()},
                    {probabilities.data(), gater.data(), routes.data(), latency.data()}, nullptr);
  for (std::size_t i = 0; i < count; ++i) {
    CHECK(routes[i] == (levels[i] >= 128 ? 1 : 0));
    std::vector<float> row(kClasses);
    std::vector<float> scores(kExperts);
    std::int64_t route = -1;
    float ms = 0;
    scheduler.predict({pixels.data() + i * kShape.bytes(), 1, kShape.bytes()}, {row.data(), scores.data(), &route, &ms},
                      nullptr);
    CHECK(route == routes[i]);
    CHECK(std::equal(row.begin(), row.end(), probabilities.begin() + static_cast<std::ptrdiff_t>(i * kClasses)));
    CHECK(std::equal(scores.begin(), scores.end(), gater.begin() + static_cast<std::ptrdiff_t>(i * kExperts)));
  }
}

TEST_CASE("a backend that was not built is named, with those that were") {
  CHECK_THROWS_WITH_AS(make_backend("abacus"), doctest::Contains("abacus"), Error);
}

#ifdef TRT_MOE_WITH_OPENVINO
TEST_CASE("openvino refuses what is no model, and options it does not know") {
  const auto backend = make_backend("openvino");
  CHECK_THROWS_AS(backend->load("no ONNX at all", {}), Error);
  CHECK_THROWS_AS(backend->load("", {}), Error);
  EngineOptions options;
  options.precision = "int3";
  CHECK_THROWS_WITH_AS(backend->load("", options), doctest::Contains("int3"), Error);
}
#endif
