// The gater's kernels on a GPU, beside a plain reference; compute-sanitizer watches this too.
#include <doctest/doctest.h>

#include <cstring>
#include <random>
#include <vector>

#include "backends/cuda/model_capture.h"
#include "gater_reference.h"
#include "gpu_support.h"

using namespace trt_moe;
using cuda::GaterNet;
using testing::the_gpu;

TEST_CASE("the gater's kernels compute what its layers do, in every bucket and run") {
  const GaterNet nets[] = {
      {{28, 28, 1}, 28, 28, false, 2}, {{45, 50, 3}, 33, 38, true, 3}, {{9, 7, 4}, 13, 16, false, 70}};
  for (const GaterNet& net : nets) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    std::vector<float> weights(gater_weights(net));
    for (float& weight : weights) weight = 0.3F * normal(random);
    const std::vector<std::size_t> buckets{1, 2, 4};
    cuda::ModelCapture capture(the_gpu(), {"gater", net.images, net.experts, buckets, "fp32"});
    capture.hold_gater(net, weights);
    for (const std::size_t bucket : buckets) {
      capture.begin(bucket);
      capture.enqueue_gater(bucket);
      CHECK(capture.end() == cuda::NodeHistogram{{"kernel", net.third ? 3 : 2}});
    }
    const auto engine = capture.finish(nullptr);
    CHECK(engine->unroutable().empty());
    const auto session = engine->open(Lane::kThroughput);
    for (const std::size_t count : {4U, 1U, 3U, 2U, 4U}) {
      for (std::uint8_t& pixel : session->input()) pixel = static_cast<std::uint8_t>(random());
      const std::vector<std::uint8_t> images(session->input().begin(), session->input().end());
      const auto found = session->run(count);
      std::vector<std::byte> block(gater_bytes(net, 4));
      std::memcpy(block.data(), weights.data(), weights.size() * sizeof(float));
      std::vector<float> expected(count * net.experts);
      const auto at = [](const void* memory) { return reinterpret_cast<std::uintptr_t>(memory); };
      testing::gater_reference(gater_run(net, 4, at(block.data()), at(images.data()), at(expected.data()), count));
      REQUIRE(found.size() == expected.size());
      for (std::size_t i = 0; i < found.size(); ++i) CHECK(found[i] == doctest::Approx(expected[i]).epsilon(1e-4));
    }
  }
}
