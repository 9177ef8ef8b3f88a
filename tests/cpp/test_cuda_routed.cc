// Device routing on a GPU: conditional graphs, the kernels and the plan that launches them.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "backends/cuda/device_routed_plan.h"
#include "backends/cuda/plan/align.h"
#include "backends/cuda/plan/route_reference.h"
#include "core/scheduler.h"
#include "fake_backend.h"
#include "gpu_support.h"

using namespace trt_moe;
using cuda::Buffer;
using cuda::Conditionals;
using cuda::MemoryKind;
using testing::capture_toy;
using testing::HostArray;
using testing::message_of;
using testing::the_gpu;
using testing::ToyModel;

namespace {

constexpr ImageShape kShape{4, 4, 3};  // 48 bytes: rows that are copied by 16
constexpr std::size_t kClasses = 5;

// A device-routed graph whose gater only copies logits that the test wrote.
class RoutedRig {
 public:
  RoutedRig(std::size_t capacity, std::vector<std::vector<std::size_t>> buckets, Conditionals conditionals,
            ImageShape shape = kShape, bool speculate = false)
      : capacity_(capacity),
        buckets_(std::move(buckets)),
        shape_(shape),
        layout_(cuda::routed_layout(capacity, experts(), kClasses, shape.bytes())),
        stream_(the_gpu()->open_stream()),
        wanted_logits_(device_memory(capacity * experts() * sizeof(float))),
        gater_logits_(device_memory(capacity * experts() * sizeof(float))),
        device_in_(device_memory(layout_.in_bytes)),
        lists_(device_memory(lists_bytes() + experts() * sizeof(std::int32_t))),
        in_(layout_.in_bytes),
        out_(layout_.out_bytes) {
    stream_->begin_capture();
    stream_->copy(gater_logits_->device(), wanted_logits_->device(), gater_logits_->size());
    gater_ = stream_->end_capture();
    cuda::RoutedGraph routed;
    routed.gater = {gater_.get(), device_in_->device() + layout_.images, gater_logits_->device(), capacity};
    std::vector<std::size_t> counts;
    for (std::size_t expert = 0; expert < experts(); ++expert) {
      const ToyModel model = testing::toy_expert(shape, kClasses, expert);
      ToyModel sized = model;
      sized.buckets = buckets_[expert];
      engines_.push_back(capture_toy("expert", sized));
      std::vector<cuda::CapturedModel>& captured = routed.experts.emplace_back();
      for (std::size_t i = 0; i < buckets_[expert].size(); ++i) captured.push_back(engines_.back()->captured(i));
      counts.push_back(captured.size());
    }
    routed.topology = cuda::graph_topology(counts, capacity, conditionals, speculate);
    routed.classes = kClasses;
    routed.image_bytes = shape.bytes();
    routed.layout = layout_;
    routed.host_in = in_.at();
    routed.device_in = device_in_->device();
    routed.rows = lists_->device();
    routed.counts = lists_->device() + lists_bytes();
    routed.out = out_.at();
    exec_ = the_gpu()->instantiate(routed);
  }

  // logits: [images * experts]. Image i is filled with level(i), which is another one in every run.
  void run(const std::vector<float>& logits, const std::vector<float>& costs, float weight) {
    ++runs_;
    const auto images = static_cast<std::int32_t>(logits.size() / experts());
    const HostArray<float> wanted(logits.size());
    std::copy(logits.begin(), logits.end(), wanted.values().begin());
    stream_->copy(wanted_logits_->device(), wanted.at(), logits.size() * sizeof(float));
    std::byte* const block = in_.values().data();
    std::memcpy(block, &images, sizeof(images));
    std::memcpy(block + layout_.weight, &weight, sizeof(weight));
    std::memcpy(block + layout_.costs, costs.data(), costs.size() * sizeof(float));
    for (std::size_t i = 0; i < static_cast<std::size_t>(images); ++i) {
      std::memset(block + layout_.images + i * shape_.bytes(), level(i), shape_.bytes());
    }
    std::memset(out_.values().data(), 0xFF, layout_.out_bytes);
    exec_->launch(*stream_);
    stream_->synchronize();
  }

  // Runs, and compares everything that the graph wrote with the reference.
  void check(const std::vector<float>& logits, const std::vector<float>& costs, float weight) {
    run(logits, costs, weight);
    const std::size_t images = logits.size() / experts();
    const cuda::RoutedBatch expected = cuda::route_reference(logits, costs, weight, capacity_, buckets_);
    const std::vector<std::int32_t> counts = fetch(lists_->device() + lists_bytes(), experts());
    const std::vector<std::int32_t> rows = fetch(lists_->device(), experts() * capacity_);
    CHECK(counts == expected.counts);
    for (std::size_t expert = 0; expert < experts(); ++expert) {
      for (std::int32_t i = 0; i < expected.counts[expert]; ++i) {
        const std::size_t at = expert * capacity_ + static_cast<std::size_t>(i);
        CHECK(rows[at] == expected.rows[at]);
      }
    }
    for (std::size_t i = 0; i < images; ++i) {
      CAPTURE(i);
      CHECK(route(i) == expected.routes[i]);
      if (route(i) >= 0) check_probabilities(i, static_cast<std::size_t>(route(i)));
      for (std::size_t k = 0; k < experts(); ++k) {
        const float written = part<float>(layout_.gater_logits)[i * experts() + k];
        CHECK(std::memcmp(&written, &logits[i * experts() + k], sizeof(float)) == 0);
      }
    }
  }

  std::size_t experts() const { return buckets_.size(); }
  std::int32_t route(std::size_t image) const { return part<std::int32_t>(0)[image]; }

 private:
  int level(std::size_t image) const { return static_cast<int>((image * 37 + runs_ * 91) % 256); }
  static std::unique_ptr<Buffer> device_memory(std::size_t bytes) {
    return the_gpu()->allocate(MemoryKind::kDevice, bytes);
  }

  std::size_t lists_bytes() const { return cuda::aligned(experts() * capacity_ * sizeof(std::int32_t)); }

  template <typename T>
  const T* part(std::size_t offset) const {
    return reinterpret_cast<const T*>(out_.values().data() + offset);
  }

  std::vector<std::int32_t> fetch(std::uintptr_t from, std::size_t count) {
    const HostArray<std::int32_t> host(count);
    stream_->copy(host.at(), from, count * sizeof(std::int32_t));
    stream_->synchronize();
    return {host.values().begin(), host.values().end()};
  }

  void check_probabilities(std::size_t image, std::size_t expert) const {
    std::vector<float> logits(kClasses);
    testing::score_position(level(image) / 255.0, 20.0 * static_cast<double>(expert + 1), logits);
    const float largest = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (const float logit : logits) sum += std::exp(static_cast<double>(logit - largest));
    for (std::size_t c = 0; c < kClasses; ++c) {
      CHECK(part<float>(layout_.probabilities)[image * kClasses + c] ==
            doctest::Approx(std::exp(static_cast<double>(logits[c] - largest)) / sum).epsilon(1e-4));
    }
  }

  std::size_t capacity_;
  std::vector<std::vector<std::size_t>> buckets_;
  ImageShape shape_;
  cuda::RoutedLayout layout_;
  std::unique_ptr<cuda::Stream> stream_;
  std::unique_ptr<Buffer> wanted_logits_;
  std::unique_ptr<Buffer> gater_logits_;
  std::unique_ptr<Buffer> device_in_;
  std::unique_ptr<Buffer> lists_;
  HostArray<std::byte> in_;
  HostArray<std::byte> out_;
  std::unique_ptr<cuda::Graph> gater_;
  std::vector<std::shared_ptr<cuda::GraphEngine>> engines_;
  std::unique_ptr<cuda::GraphExec> exec_;
  std::size_t runs_ = 0;
};

std::vector<float> one_hot(const std::vector<std::size_t>& picks, std::size_t experts) {
  std::vector<float> logits(picks.size() * experts, 0.0F);
  for (std::size_t i = 0; i < picks.size(); ++i) logits[i * experts + picks[i]] = 1.0F;
  return logits;
}

std::vector<Conditionals> conditionals_here() {
  switch (the_gpu()->info().conditionals) {
    case Conditionals::kSwitch: return {Conditionals::kSwitch, Conditionals::kIf};
    case Conditionals::kIf: return {Conditionals::kIf};
    case Conditionals::kNone: break;
  }
  MESSAGE("this driver or runtime has no conditional nodes");
  return {};
}

// Routes with a device-routed plan, or the host-routed one, over toys.
struct Router {
  Router()
      : gater(capture_toy("gater", testing::toy_gater(kShape, 3))),
        experts{capture_toy("cheap", testing::toy_expert(kShape, kClasses, 0)),
                capture_toy("middle", testing::toy_expert(kShape, kClasses, 1)),
                capture_toy("dear", testing::toy_expert(kShape, kClasses, 2))},
        scheduler(gater, {{"cheap", experts[0], 0.2F}, {"middle", experts[1], 0.5F}, {"dear", experts[2], 1.0F}}, {}) {}

  struct Answers {
    std::vector<std::int64_t> routes;
    std::vector<float> probabilities;
    std::vector<float> gater;
  };

  Answers predict(const std::vector<std::uint8_t>& levels) {
    std::vector<std::uint8_t> images;
    for (const std::uint8_t level : levels) images.insert(images.end(), kShape.bytes(), level);
    Answers answers{std::vector<std::int64_t>(levels.size(), -1), std::vector<float>(levels.size() * kClasses),
                    std::vector<float>(levels.size() * 3)};
    std::vector<float> latency(levels.size());
    scheduler.predict({images.data(), levels.size(), kShape.bytes()},
                      {answers.probabilities.data(), answers.gater.data(), answers.routes.data(), latency.data()},
                      nullptr);
    return answers;
  }

  std::shared_ptr<cuda::GraphEngine> gater;
  std::vector<std::shared_ptr<cuda::GraphEngine>> experts;
  Scheduler scheduler;
};

}  // namespace

TEST_CASE("every conditional body runs when its bucket is asked for, and no other") {
  for (const Conditionals conditionals : conditionals_here()) {
    RoutedRig rig(32, {{1, 8, 32}, {1, 8, 32}, {1, 8, 32}}, conditionals);
    const std::vector<float> costs(3, 0.0F);
    rig.check(one_hot({0}, 3), costs, 0.0F);
    rig.check(one_hot({1, 1, 2}, 3), costs, 0.0F);
    rig.check(one_hot(std::vector<std::size_t>(9, 2), 3), costs, 0.0F);
    rig.check(one_hot(std::vector<std::size_t>(32, 0), 3), costs, 0.0F);
    rig.check(one_hot({1, 1, 1, 1, 1, 1, 1, 1, 2}, 3), costs, 0.0F);
    rig.check(one_hot({0, 1, 2, 0, 1, 2, 0, 1, 2}, 3), costs, 0.0F);
  }
}

TEST_CASE("the route kernel equals its twin on the host to the last bit, and the weight needs no new graph") {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (const Conditionals conditionals : conditionals_here()) {
    for (const auto& [capacity, experts] :
         std::vector<std::pair<std::size_t, std::size_t>>{{1, 2}, {33, 5}, {40, 64}}) {
      RoutedRig rig(capacity, std::vector<std::vector<std::size_t>>(experts, {1, 3, capacity < 4 ? 4 : capacity}),
                    conditionals);
      for (int round = 0; round < 20; ++round) {
        const std::size_t images = 1 + random() % capacity;
        std::vector<float> logits(images * experts);
        std::vector<float> costs(experts);
        // Few different values, so that there are ties.
        for (float& logit : logits) logit = std::round(normal(random) * 4.0F) / 3.0F;
        for (float& cost : costs) cost = static_cast<float>(random() % 4) / 3.0F;
        rig.check(logits, costs, std::abs(normal(random)));
      }
    }
  }
}

TEST_CASE("the largest batch there is room for") {
  for (const Conditionals conditionals : conditionals_here()) {
    RoutedRig rig(1024, {{1, 512, 1024}, {1, 1024}}, conditionals);
    std::mt19937 random(2);
    std::vector<std::size_t> picks(1024);
    for (std::size_t& pick : picks) pick = random() % 2;
    rig.check(one_hot(picks, 2), {0.0F, 0.0F}, 0.0F);
    rig.check(one_hot(std::vector<std::size_t>(1024, 1), 2), {0.0F, 0.0F}, 0.0F);
  }
}

TEST_CASE("images of any size are gathered") {
  for (const Conditionals conditionals : conditionals_here()) {
    for (const ImageShape shape :
         {ImageShape{1, 1, 1}, ImageShape{3, 5, 3}, ImageShape{64, 64, 3}, ImageShape{33, 31, 3}}) {
      RoutedRig rig(8, {{1, 8}, {1, 2, 8}}, conditionals, shape);
      rig.check(one_hot({1, 0, 1, 1, 0, 1, 0}, 2), {0.0F, 0.0F}, 0.0F);
    }
  }
}

TEST_CASE("an image with a logit that is not finite takes no expert") {
  for (const Conditionals conditionals : conditionals_here()) {
    RoutedRig rig(4, {{1, 4}, {1, 4}}, conditionals);
    const float infinite = std::numeric_limits<float>::infinity();
    const float nan = std::numeric_limits<float>::quiet_NaN();
    rig.check({1.0F, 0.0F, nan, 0.0F, 0.0F, -infinite, infinite, 0.0F}, {0.0F, 0.0F}, 0.0F);
    CHECK(rig.route(0) == 0);
    for (const std::size_t image : {1U, 2U, 3U}) CHECK(rig.route(image) == -1);
  }
}

TEST_CASE("a single image takes its expert, or none") {
  for (const Conditionals conditionals : conditionals_here()) {
    for (const bool speculate : {false, true}) {
      RoutedRig rig(1, {{1}, {1}, {1}}, conditionals, kShape, speculate);
      for (const std::size_t pick : {2U, 0U, 1U, 1U, 0U, 0U, 0U, 0U, 0U, 0U, 0U, 0U, 0U})
        rig.check(one_hot({pick}, 3), {0.0F, 0.0F, 0.0F}, 0.0F);
      rig.check({1.0F, std::numeric_limits<float>::quiet_NaN(), 0.0F}, {0.0F, 0.0F, 0.0F}, 0.0F);
      CHECK(rig.route(0) == -1);
    }
  }
}

// racecheck of compute-sanitizer follows kernels, and fails on the conditional graphs that hold them.
TEST_CASE("the kernels alone, in no graph") {
  for (const ImageShape shape : {kShape, ImageShape{3, 5, 3}}) {
    constexpr std::size_t kCapacity = 70;
    constexpr std::size_t kImages = 67;
    constexpr std::size_t kExperts = 3;
    constexpr std::size_t kManyClasses = 300;  // more than a block's threads
    std::mt19937 random(6);
    std::normal_distribution<float> normal;
    const auto stream = the_gpu()->open_stream();
    const auto on_device = [&](const auto& values) {
      using T = std::decay_t<decltype(values[0])>;
      const HostArray<T> host(values.size());
      std::copy(values.begin(), values.end(), host.values().begin());
      auto memory = the_gpu()->allocate(MemoryKind::kDevice, values.size() * sizeof(T));
      stream->copy(memory->device(), host.at(), values.size() * sizeof(T));
      stream->synchronize();
      return memory;
    };
    const auto fetch = [&]<typename T>(const Buffer& memory, std::vector<T> values) {
      const HostArray<T> host(values.size());
      stream->copy(host.at(), memory.device(), values.size() * sizeof(T));
      stream->synchronize();
      std::copy(host.values().begin(), host.values().end(), values.begin());
      return values;
    };
    const auto at = []<typename T>(T*& pointer, const std::unique_ptr<Buffer>& memory) {
      pointer = reinterpret_cast<T*>(memory->device());
    };

    std::vector<float> logits(kCapacity * kExperts);
    for (float& logit : logits) logit = std::round(normal(random) * 4.0F) / 3.0F;
    logits[4] = std::numeric_limits<float>::quiet_NaN();  // the second image takes no expert
    const std::vector<float> costs{0.0F, 0.3F, 1.0F};
    const std::vector<std::uint8_t> pixels = [&] {
      std::vector<std::uint8_t> all(kCapacity * shape.bytes());
      for (std::uint8_t& pixel : all) pixel = static_cast<std::uint8_t>(random());
      return all;
    }();
    std::vector<float> expert_logits(kCapacity * kManyClasses);
    for (float& logit : expert_logits) logit = normal(random);
    expert_logits[7] = std::numeric_limits<float>::infinity();

    const auto images = on_device(std::vector<std::int32_t>{static_cast<std::int32_t>(kImages)});
    const auto weight = on_device(std::vector<float>{0.5F});
    const auto cost = on_device(costs);
    const auto gater = on_device(logits);
    const auto copied = on_device(std::vector<float>(logits.size()));
    const auto routes = on_device(std::vector<std::int32_t>(kCapacity));
    const auto rows = on_device(std::vector<std::int32_t>(kExperts * kCapacity));
    const auto counts = on_device(std::vector<std::int32_t>(kExperts));
    const auto source = on_device(pixels);
    const auto input = on_device(std::vector<std::uint8_t>(pixels.size()));
    const auto output = on_device(expert_logits);
    const auto probabilities = on_device(std::vector<float>(expert_logits.size()));

    cuda::RouteArguments route;  // without bodies, so that there is no handle to set
    cuda::RoutingArguments& routing = route.routing;
    at(routing.images, images);
    at(routing.weight, weight);
    at(routing.costs, cost);
    at(routing.logits, gater);
    at(routing.gater_logits, copied);
    at(routing.routes, routes);
    at(routing.rows, rows);
    at(routing.counts, counts);
    routing.capacity = kCapacity;
    routing.experts = kExperts;
    testing::enqueue_kernel(stream->handle(), cuda::route_kernel(route), &route);
    cuda::GatherArguments gather;
    at(gather.images, source);
    at(gather.input, input);
    at(gather.rows, rows);
    at(gather.count, counts);
    gather.image_bytes = shape.bytes();
    testing::enqueue_kernel(stream->handle(), cuda::gather_kernel(gather, kCapacity), &gather);
    cuda::ScatterArguments scatter;
    at(scatter.logits, output);
    at(scatter.probabilities, probabilities);
    at(scatter.rows, rows);
    at(scatter.count, counts);
    scatter.classes = kManyClasses;
    testing::enqueue_kernel(stream->handle(), cuda::scatter_kernel(scatter, kCapacity), &scatter);

    const cuda::RoutedBatch expected = cuda::route_reference(std::span(logits).first(kImages * kExperts), costs, 0.5F,
                                                             kCapacity, {{kCapacity}, {kCapacity}, {kCapacity}});
    CHECK(fetch(*counts, std::vector<std::int32_t>(kExperts)) == expected.counts);
    CHECK(fetch(*routes, std::vector<std::int32_t>(kImages)) == expected.routes);
    const auto gathered = fetch(*input, std::vector<std::uint8_t>(pixels.size()));
    const auto found = fetch(*probabilities, std::vector<float>(expert_logits.size()));
    REQUIRE(expected.counts[0] > 1);
    for (std::size_t slot = 0; slot < static_cast<std::size_t>(expected.counts[0]); ++slot) {
      const auto image = static_cast<std::size_t>(expected.rows[slot]);
      CHECK(std::equal(pixels.begin() + static_cast<std::ptrdiff_t>(image * shape.bytes()),
                       pixels.begin() + static_cast<std::ptrdiff_t>((image + 1) * shape.bytes()),
                       gathered.begin() + static_cast<std::ptrdiff_t>(slot * shape.bytes())));
      if (slot == 0) {
        CHECK(std::isnan(found[image * kManyClasses]));
        continue;
      }
      double sum = 0;
      for (std::size_t c = 0; c < kManyClasses; ++c) {
        sum += std::exp(static_cast<double>(expert_logits[slot * kManyClasses + c]));
      }
      for (std::size_t c = 0; c < kManyClasses; ++c) {
        const double right = std::exp(static_cast<double>(expert_logits[slot * kManyClasses + c])) / sum;
        CHECK(found[image * kManyClasses + c] == doctest::Approx(right).epsilon(1e-4));
      }
    }
  }
}

TEST_CASE("what the kernels have no room for is refused before anything runs") {
  for (const Conditionals conditionals : conditionals_here()) {
    CHECK(message_of([&] { RoutedRig(1025, {{1, 1025}}, conditionals); }).find("1024 images") != std::string::npos);
    CHECK(message_of([&] {
            RoutedRig(1, std::vector<std::vector<std::size_t>>(65, {1}), conditionals);
          }).find("64 experts") != std::string::npos);
    CHECK(message_of([&] { RoutedRig(8, {{1, 4}}, conditionals); }).find("whole batch") != std::string::npos);
  }
}

TEST_CASE("device-routed answers are host-routed answers, alone, in batches and from many threads") {
  Router host;
  {
    const Router chosen;
    const cuda::Routing routing = cuda::choose_routing(chosen.gater, {chosen.experts.begin(), chosen.experts.end()});
    INFO(routing.reason);
    REQUIRE((routing.plan != nullptr) == !conditionals_here().empty());
  }
  std::vector<std::pair<Conditionals, bool>> kinds;
  for (const Conditionals conditionals : conditionals_here()) {
    for (const bool speculate : {false, true}) kinds.emplace_back(conditionals, speculate);
  }
  for (const auto& [conditionals, speculate] : kinds) {
    Router device;
    device.scheduler.use(
        std::make_shared<cuda::DeviceRoutedPlan>(device.gater, device.experts, conditionals, speculate));
    std::mt19937 random(4);
    for (const float weight : {0.0F, 3.0F, 1000.0F}) {
      host.scheduler.set_latency_weight(weight);
      device.scheduler.set_latency_weight(weight);
      for (const std::size_t count : {1U, 2U, 5U, 16U, 17U, 50U}) {
        std::vector<std::uint8_t> levels(count);
        for (std::uint8_t& level : levels) level = static_cast<std::uint8_t>(random());
        const Router::Answers expected = host.predict(levels);
        std::array<std::string, 3> errors;
        std::vector<std::thread> threads;
        for (std::string& error : errors) {
          threads.emplace_back([&] {
            error = testing::error_of([&] {
              const Router::Answers found = device.predict(levels);
              CHECK(found.routes == expected.routes);
              CHECK(found.gater == expected.gater);
              for (std::size_t i = 0; i < expected.probabilities.size(); ++i) {
                CHECK(found.probabilities[i] == doctest::Approx(expected.probabilities[i]).epsilon(1e-5));
              }
            });
          });
        }
        for (auto& thread : threads) thread.join();
        CHECK(errors == std::array<std::string, 3>{});
      }
    }
  }
}

TEST_CASE("what a routed graph has no room for is refused, and a gater that reads elsewhere") {
  const auto gater = capture_toy("g", {kShape, 64, 40.0, {1}});
  const auto expert = capture_toy("e", {kShape, kClasses, 20.0, {1, 2, 3, 4, 5, 6, 8}});
  constexpr std::size_t kMany = 64;
  constexpr std::size_t kSizes = 7;
  cuda::RoutedGraph routed;
  routed.layout = cuda::routed_layout(1, kMany, kClasses, kShape.bytes());
  routed.gater = gater->captured(0);
  routed.device_in = gater->memory().control();
  for (std::size_t i = 0; i < kMany; ++i) {
    auto& buckets = routed.experts.emplace_back();
    for (std::size_t bucket = 0; bucket < kSizes; ++bucket) buckets.push_back(expert->captured(bucket));
  }
  routed.topology = cuda::graph_topology(std::vector<std::size_t>(kMany, kSizes), 1, Conditionals::kIf);
  routed.classes = kClasses;
  routed.image_bytes = kShape.bytes();
  CHECK(message_of([&] { the_gpu()->instantiate(routed); }).find("384 buckets of all experts") != std::string::npos);
  routed.experts.resize(2);
  routed.device_in += 256;
  CHECK(message_of([&] { the_gpu()->instantiate(routed); }).find("needs the gater to read") != std::string::npos);
}
