// The gater's kernels' own code, on the CPU, beside a plain reference.
#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "backends/cuda/gater_kernels.h"
#include "backends/cuda/plan/gater_net.h"
#include "gater_reference.h"

using namespace trt_moe;
using namespace trt_moe::cuda;

namespace {

struct Case {
  const char* what;
  GaterNet net;
};

void check(const GaterNet& net) {
  constexpr std::size_t kMost = 2;
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<uint4> block(gater_bytes(net, kMost) / sizeof(uint4) + 1);
  auto* const weights = reinterpret_cast<float*>(block.data());
  for (std::size_t i = 0; i < gater_weights(net); ++i) weights[i] = 0.3F * normal(random);
  std::vector<std::uint8_t> images(kMost * net.images.bytes());
  for (auto& pixel : images) pixel = static_cast<std::uint8_t>(random());
  std::vector<float> found;
  std::vector<float> expected(kMost * net.experts);
  const auto run_to = [&](std::vector<float>& logits, std::size_t count) {
    return gater_run(net, kMost, reinterpret_cast<std::uintptr_t>(block.data()),
                     reinterpret_cast<std::uintptr_t>(images.data()), reinterpret_cast<std::uintptr_t>(logits.data()),
                     count);
  };
  // Twice, since the second run finds what the first one left.
  for (const std::size_t count : {kMost, std::size_t{1}}) {
    found.assign((kMost + 1) * net.experts, -77.0F);
    const GaterRun run = run_to(found, count);
    const GaterKernels gater = gater_kernels(run);
    CHECK(gater.count == (net.third ? 3 : 2));
    for (std::size_t i = 0; i < gater.count; ++i) {
      const auto& [launch, arguments] = gater.kernels[i];
      if (arguments == &run.stem) on_host::launch(launch.function, launch.grid, launch.block, run.stem);
      if (arguments == &run.middle) on_host::launch(launch.function, launch.grid, launch.block, run.middle);
      if (arguments == &run.head) on_host::launch(launch.function, launch.grid, launch.block, run.head);
    }
    testing::gater_reference(run_to(expected, count));
    for (std::size_t i = 0; i < count * net.experts; ++i) {
      CHECK(found[i] == doctest::Approx(expected[i]).epsilon(1e-4));
    }
    CHECK(found[kMost * net.experts] == -77.0F);
  }
}

}  // namespace

TEST_CASE("the gater's kernels compute what its layers do") {
  // Sides that no tile divides, images of one to four channels, resized or not, with two and three Fire blocks.
  const Case cases[] = {
      {"as they are, one channel", {{28, 28, 1}, 28, 28, false, 2}},
      {"made smaller, three channels", {{45, 50, 3}, 33, 38, true, 3}},
      {"made larger, two channels", {{9, 7, 2}, 13, 16, false, 4}},
      {"four channels, wide", {{10, 30, 4}, 10, 30, false, 2}},
      {"more tiles than a thread asks for at once", {{8, 8, 1}, 120, 120, false, 2}},
      {"as small as it gets", {{8, 8, 1}, 8, 8, false, 70}},
  };
  for (const auto& [what, net] : cases) {
    CAPTURE(what);
    check_gater(net, 2);
    check(net);
  }
}

TEST_CASE("every kernel of a gater is among those that a device loads beforehand") {
  const auto all = all_gater_kernels();
  for (const bool third : {false, true}) {
    const GaterNet net{{48, 48, 3}, 48, 48, third, 2};
    const GaterRun run = gater_run(net, 1, 0, 0, 0, 1);
    const GaterKernels gater = gater_kernels(run);
    for (std::size_t i = 0; i < gater.count; ++i) {
      CHECK(std::find(all.begin(), all.end(), gater.kernels[i].launch.function) != all.end());
    }
  }
}
