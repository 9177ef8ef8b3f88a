// The CUDA kernels' own code, on the CPU; see cuda_on_host/device.h.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "backends/cuda/kernels.h"
#include "backends/cuda/plan/route_reference.h"

using namespace trt_moe::cuda;

namespace {

constexpr std::int32_t kUntouched = -77;

template <typename Arguments>
void run(const KernelLaunch& kernel, const Arguments& arguments) {
  on_host::launch(kernel.function, kernel.grid, kernel.block, arguments);
}

struct RouteCase {
  std::size_t capacity;
  std::int32_t images;
  std::vector<float> logits;  // of all `capacity` images
  std::vector<float> costs;
  float weight;
  std::vector<std::vector<std::size_t>> buckets;
  bool ifs = false;
  std::int32_t first_conditional = 0;
};

// What a route kernel writes, and its twin.
class Routed {
 public:
  explicit Routed(const RouteCase& given)
      : given_(given),
        gater_logits_(given.logits.size(), kUntouched),
        routes_(given.capacity, kUntouched),
        rows_(experts() * given.capacity, kUntouched),
        counts_(experts(), kUntouched),
        expected_(route_reference(std::span(given.logits).first(images() * experts()), given.costs, given.weight,
                                  given.capacity, given.buckets)) {
    on_host::conditionals().set.clear();
  }

  RoutingArguments arguments() {
    return {.images = &given_.images,
            .weight = &given_.weight,
            .costs = given_.costs.data(),
            .logits = given_.logits.data(),
            .gater_logits = gater_logits_.data(),
            .routes = routes_.data(),
            .rows = rows_.data(),
            .counts = counts_.data(),
            .capacity = static_cast<std::int32_t>(given_.capacity),
            .experts = static_cast<std::int32_t>(experts()),
            .first_conditional = given_.first_conditional};
  }

  // Compares everything that the kernel wrote with the twin, and what it must not write with what was there. handles:
  // how many it had to set.
  void check(std::size_t handles) const {
    CHECK(counts_ == expected_.counts);
    for (std::size_t image = 0; image < given_.capacity; ++image) {
      CHECK(routes_[image] == (image < images() ? expected_.routes[image] : kUntouched));
    }
    for (std::size_t i = 0; i < gater_logits_.size(); ++i) {
      const float found = i < images() * experts() ? given_.logits[i] : static_cast<float>(kUntouched);
      CHECK((gater_logits_[i] == found || (std::isnan(gater_logits_[i]) && std::isnan(found))));
    }
    for (std::size_t expert = 0; expert < experts(); ++expert) {
      for (std::size_t i = 0; i < given_.capacity; ++i) {
        const std::size_t at = expert * given_.capacity + i;
        const bool listed = i < static_cast<std::size_t>(counts_[expert]);
        CHECK(rows_[at] == (listed ? expected_.rows[at] : kUntouched));
      }
    }
    CHECK(on_host::conditionals().set.size() == handles);
    for (const auto& [handle, conditional] : on_host::conditionals().set) {
      CHECK(conditional.times == 1);
      CHECK(conditional.thread == 0);
    }
  }

  std::size_t experts() const { return given_.costs.size(); }
  std::size_t images() const { return std::min(static_cast<std::size_t>(given_.images), given_.capacity); }
  const RoutedBatch& expected() const { return expected_; }

 private:
  const RouteCase& given_;
  std::vector<float> gater_logits_;
  std::vector<std::int32_t> routes_;
  std::vector<std::int32_t> rows_;
  std::vector<std::int32_t> counts_;
  RoutedBatch expected_;
};

void check_route(const RouteCase& given) {
  Routed routed(given);
  RouteArguments arguments{.routing = routed.arguments(), .ifs = given.ifs};
  std::uint16_t body = 0;
  for (std::size_t expert = 0; expert < routed.experts(); ++expert) {
    arguments.first_body[expert] = body;
    for (const std::size_t bucket : given.buckets[expert])
      arguments.bucket[body++] = static_cast<std::uint16_t>(bucket);
  }
  arguments.first_body[routed.experts()] = body;
  for (std::size_t i = 0; i < kMaxBodies; ++i) arguments.handles[i] = 1000 + i;
  run(route_kernel(arguments), arguments);

  const auto first = static_cast<std::size_t>(given.first_conditional);
  routed.check(given.ifs ? body - arguments.first_body[first] : routed.experts() - first);
  const auto& set = on_host::conditionals().set;
  for (std::size_t expert = first; expert < routed.experts(); ++expert) {
    const auto chosen = static_cast<unsigned>(routed.expected().buckets[expert]);
    if (!given.ifs) {
      CHECK(set.at(1000 + expert).value == chosen);
      continue;
    }
    for (unsigned i = 0; i < given.buckets[expert].size(); ++i) {
      CHECK(set.at(1000 + arguments.first_body[expert] + i).value == (i == chosen ? 1U : 0U));
    }
  }
}

// bytes: of the image. shift: of the last expert's input, from where sixteen bytes are aligned.
void check_route_image(const RouteCase& given, std::size_t bytes, std::size_t shift = 0) {
  Routed routed(given);
  std::vector<uint4> pixels(bytes / sizeof(uint4) + 1);
  auto* const image = reinterpret_cast<std::uint8_t*>(pixels.data());
  for (std::size_t i = 0; i < bytes; ++i) image[i] = static_cast<std::uint8_t>(i % 251 + 1);
  std::vector<std::vector<uint4>> inputs(routed.experts(), std::vector<uint4>(pixels.size() + 1));
  RouteImageArguments arguments{
      .routing = routed.arguments(), .handle = 1000, .image = image, .image_bytes = bytes, .inputs = {}};
  for (std::size_t expert = 0; expert < routed.experts(); ++expert) {
    arguments.inputs[expert] =
        reinterpret_cast<std::uint8_t*>(inputs[expert].data()) + (expert + 1 == routed.experts() ? shift : 0);
  }
  run(route_image_kernel(arguments), arguments);

  routed.check(1);
  const std::int32_t expert = given.images > 0 ? routed.expected().routes[0] : -1;
  const std::int32_t first = given.first_conditional;
  const std::size_t none = routed.experts() - static_cast<std::size_t>(first);
  CHECK(on_host::conditionals().set.at(1000).value ==
        (expert < first ? none : static_cast<std::size_t>(expert - first)));
  for (std::size_t i = 0; i < routed.experts(); ++i) {
    const bool its = static_cast<std::int32_t>(i) == expert && expert >= first;
    const auto* const input = reinterpret_cast<const std::uint8_t*>(inputs[i].data());
    const std::size_t begin = i + 1 == routed.experts() ? shift : 0;
    for (std::size_t at = 0; at < inputs[i].size() * sizeof(uint4); ++at) {
      CHECK(input[at] == (its && at >= begin && at < begin + bytes ? image[at - begin] : 0));
    }
  }
}

}  // namespace

TEST_CASE("the route kernel does what its twin does") {
  std::mt19937 random(5);
  const auto up_to = [&](std::size_t most) { return std::uniform_int_distribution<std::size_t>(1, most)(random); };
  for (int round = 0; round < 30; ++round) {
    RouteCase given;
    const std::size_t experts = up_to(5);
    given.capacity = up_to(70);
    given.images = static_cast<std::int32_t>(up_to(given.capacity));
    given.weight = static_cast<float>(up_to(3)) - 1.0F;
    given.ifs = round % 2 == 1;
    for (std::size_t expert = 0; expert < experts; ++expert) {
      given.costs.push_back(static_cast<float>(up_to(4)) / 4.0F);
      given.buckets.push_back({1});
      if (given.capacity > 4) given.buckets.back().push_back(4);
      if (given.capacity > 1) given.buckets.back().push_back(given.capacity);
    }
    // Quarters tie often; some are not finite.
    for (std::size_t i = 0; i < given.capacity * experts; ++i) {
      const float values[] = {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()};
      given.logits.push_back(up_to(40) <= 2 ? values[i % 2] : static_cast<float>(up_to(8)) / 4.0F);
    }
    CAPTURE(round);
    check_route(given);
  }
}

TEST_CASE("the route kernel takes as many images and experts as it has room for, and no more images than that") {
  RouteCase many{kMaxImages, kMaxImages, {}, {0.0F, 1.0F}, 0.5F, {{1, kMaxImages}, {1, 32, kMaxImages}}};
  for (std::size_t i = 0; i < kMaxImages * 2; ++i) many.logits.push_back(static_cast<float>(i * 7 % 5));
  check_route(many);
  RouteCase wide{3, 3, {}, std::vector<float>(kMaxExperts), 0.0F, {}, true};
  for (std::size_t i = 0; i < 3 * kMaxExperts; ++i) wide.logits.push_back(static_cast<float>(i * 11 % 64));
  wide.buckets.assign(kMaxExperts, {1, 2, 3});
  check_route(wide);
  check_route({2, 9, {1.0F, 0.0F, 0.0F, 1.0F}, {0.0F, 0.0F}, 0.0F, {{2}, {1, 2}}});
}

TEST_CASE("the route kernel of a single image takes it to its expert, unless that runs anyway, and sets one handle") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> costs{0.0F, 0.5F, 1.0F};
  for (const std::int32_t first : {0, 1}) {
    for (const std::vector<float>& logits :
         {std::vector<float>{0.0F, 2.0F, 1.0F}, {3.0F, 2.0F, 1.0F}, {0.0F, 0.0F, 9.0F}, {0.0F, nan, 1.0F}}) {
      for (const std::size_t bytes : {1U, 48U, 4113U, 150'528U}) {
        CAPTURE(bytes);
        for (const std::size_t shift : {0U, 4U}) {
          check_route_image({1, 1, logits, costs, 1.0F, {{1}, {1}, {1}}, false, first}, bytes, shift);
        }
      }
      check_route({1, 1, logits, costs, 1.0F, {{1}, {1}, {1}}, true, first});
    }
    check_route_image({1, 0, {0.0F, 2.0F, 1.0F}, costs, 1.0F, {{1}, {1}, {1}}, false, first}, 48);
  }
  RouteCase wide{1, 1, std::vector<float>(kMaxExperts), std::vector<float>(kMaxExperts), 0.0F, {}};
  wide.logits[kMaxExperts - 1] = 1.0F;
  wide.buckets.assign(kMaxExperts, {1});
  check_route_image(wide, 48);
}

TEST_CASE("the gather kernel copies the listed images, in wide units where they are aligned") {
  for (const std::size_t bytes : {1U, 7U, 16U, 784U, 4800U}) {
    constexpr std::size_t kImages = 5;
    constexpr std::size_t kRows = 4;
    std::vector<uint4> aligned_images((kImages * bytes + sizeof(uint4)) / sizeof(uint4));
    auto* const images = reinterpret_cast<std::uint8_t*>(aligned_images.data());
    for (std::size_t i = 0; i < kImages * bytes; ++i) images[i] = static_cast<std::uint8_t>(i * 31 + i / 256);
    std::vector<uint4> aligned_input((kRows * bytes + sizeof(uint4)) / sizeof(uint4));
    auto* const input = reinterpret_cast<std::uint8_t*>(aligned_input.data());
    const std::vector<std::int32_t> rows{4, 0, 3, 99};  // past the count, what an earlier batch left
    const std::int32_t count = 3;
    const GatherArguments arguments{images, input, rows.data(), &count, bytes};
    run(gather_kernel(arguments, kRows), arguments);
    CAPTURE(bytes);
    for (std::size_t slot = 0; slot < 3; ++slot) {
      CHECK(std::equal(input + slot * bytes, input + (slot + 1) * bytes,
                       images + static_cast<std::size_t>(rows[slot]) * bytes));
    }
    CHECK(std::all_of(input + 3 * bytes, input + 4 * bytes, [](std::uint8_t value) { return value == 0; }));
  }
}

TEST_CASE("the scatter kernel writes each image's softmax, or NaN where a logit is not finite") {
  std::mt19937 random(6);
  std::normal_distribution<float> normal(0.0F, 5.0F);
  for (const std::size_t classes : {1U, 2U, 10U, 33U, 300U, 1000U}) {
    constexpr std::size_t kCapacity = 6;
    std::vector<float> logits(4 * classes);
    for (float& logit : logits) logit = normal(random);
    logits[2 * classes + classes / 2] = std::numeric_limits<float>::infinity();
    std::vector<float> probabilities(kCapacity * classes, kUntouched);
    const std::vector<std::int32_t> rows{5, 1, 2, 99};
    const std::int32_t count = 3;
    const ScatterArguments arguments{logits.data(), probabilities.data(), rows.data(), &count, classes};
    run(scatter_kernel(arguments, 4), arguments);
    CAPTURE(classes);
    for (std::size_t slot = 0; slot < 2; ++slot) {
      const float* const from = logits.data() + slot * classes;
      const float* const to = probabilities.data() + static_cast<std::size_t>(rows[slot]) * classes;
      double sum = 0;
      for (std::size_t i = 0; i < classes; ++i) sum += std::exp(static_cast<double>(from[i]));
      for (std::size_t i = 0; i < classes; ++i) {
        CHECK(to[i] == doctest::Approx(std::exp(static_cast<double>(from[i])) / sum).epsilon(1e-5));
      }
    }
    for (std::size_t i = 0; i < classes; ++i) CHECK(std::isnan(probabilities[2 * classes + i]));
    for (const std::size_t image : {0U, 3U, 4U}) {
      for (std::size_t i = 0; i < classes; ++i) CHECK(probabilities[image * classes + i] == kUntouched);
    }
  }
}

TEST_CASE("the scatter kernel's softmax bears one logit that is far above all others, in any of a thread's places") {
  constexpr std::size_t kWide = 600;
  for (const std::size_t place : {0U, 299U, 599U}) {
    std::vector<float> logits(kWide);
    logits[place] = 200.0F;
    std::vector<float> probabilities(kWide, kUntouched);
    const std::int32_t row = 0;
    const std::int32_t count = 1;
    const ScatterArguments arguments{logits.data(), probabilities.data(), &row, &count, kWide};
    run(scatter_kernel(arguments, 1), arguments);
    CHECK(probabilities[place] == 1.0F);
    CHECK(probabilities[place == 0 ? 1 : 0] == doctest::Approx(0.0));
  }
}

TEST_CASE("the copy kernel copies every byte and no other, wherever it lies") {
  const auto at = [](const void* memory) { return reinterpret_cast<std::uintptr_t>(memory); };
  struct Shifts {
    std::size_t from;
    std::size_t to;
  };
  for (const std::size_t bytes : {1U, 12U, 16U, 31U, 784U, 4096U, 4113U}) {
    for (const auto& [from_shift, to_shift] : {Shifts{0, 0}, Shifts{4, 0}, Shifts{0, 12}, Shifts{3, 3}, Shifts{8, 8}}) {
      CAPTURE(bytes);
      CAPTURE(from_shift);
      CAPTURE(to_shift);
      std::vector<uint4> source(bytes / sizeof(uint4) + 2);
      std::vector<uint4> target(source.size());
      auto* const from = reinterpret_cast<std::uint8_t*>(source.data()) + from_shift;
      auto* const to = reinterpret_cast<std::uint8_t*>(target.data());
      for (std::size_t i = 0; i < bytes; ++i) from[i] = static_cast<std::uint8_t>(i % 251 + 1);
      const CopyArguments arguments = copy_arguments(at(to + to_shift), at(from), bytes);
      CHECK(arguments.units == (from_shift + to_shift == 0 ? bytes / sizeof(uint4) : 0));
      run(copy_kernel(arguments), arguments);
      for (std::size_t i = 0; i < target.size() * sizeof(uint4); ++i) {
        CHECK(to[i] == (i >= to_shift && i < to_shift + bytes ? from[i - to_shift] : 0));
      }
    }
  }
}

TEST_CASE("few bytes are for a kernel, and fewer where they lie askew") {
  const auto is = [](std::uintptr_t to, std::uintptr_t from, std::size_t bytes) {
    return is_for_a_kernel(copy_arguments(to, from, bytes));
  };
  CHECK_FALSE(is(256, 512, 0));
  CHECK(is(256, 512, 1));
  CHECK(is(256, 512, kMostBytesOfKernel));
  CHECK_FALSE(is(256, 512, kMostBytesOfKernel + 1));
  CHECK(is(260, 512, kMostBytesOneByOne));
  CHECK_FALSE(is(256, 516, kMostBytesOneByOne + 1));
}

TEST_CASE("every kernel is among those that a device loads beforehand") {
  const auto all = all_kernels();
  const auto known = [&](const void* function) { return std::find(all.begin(), all.end(), function) != all.end(); };
  CHECK(known(route_kernel({}).function));
  for (const std::size_t bytes : {16U, 7U}) {
    RouteImageArguments image;
    GatherArguments gather;
    image.image_bytes = gather.image_bytes = bytes;
    CHECK(known(route_image_kernel(image).function));
    CHECK(known(gather_kernel(gather, 1).function));
  }
  CHECK(known(scatter_kernel({}, 1).function));
  CHECK(known(copy_kernel({}).function));
}
