#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <numeric>
#include <thread>
#include <vector>

#include "core/backend.h"
#include "core/error.h"

namespace trt_moe::testing {

// A door that sessions can be made to wait at, so that tests need no sleeps.
class Gate {
 public:
  void shut() {
    const std::lock_guard lock(mutex_);
    open_ = false;
  }
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  void pass() {
    std::unique_lock lock(mutex_);
    ++arrived_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return open_; });
  }
  void wait_for_arrivals(int count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return arrived_ >= count; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = true;
  int arrived_ = 0;
};

// Computes logits on the host from each image's pixels.
struct FakeModel {
  ImageShape input;
  std::size_t outputs = 0;
  std::function<void(std::span<const std::uint8_t> image, std::span<float> logits)> compute;
  std::vector<std::size_t> buckets{1, 4, 16};
  std::size_t parallel = 2;
  bool on_host = false;
};

class FakeEngine final : public Engine {
 public:
  explicit FakeEngine(FakeModel model)
      : model_(std::move(model)),
        info_{model_.input, model_.outputs, "fp32", "fake", model_.parallel, Buckets(model_.buckets), model_.on_host} {}

  const EngineInfo& info() const override { return info_; }
  std::unique_ptr<Session> open(Lane lane) override { return std::make_unique<FakeSession>(*this, lane); }

  Gate gate;                                       // every run passes it
  std::atomic<int> runs_to_fail{0};                // so many next runs throw
  std::atomic<std::chrono::milliseconds> takes{};  // every run
  std::mutex sizes_mutex;
  std::vector<std::size_t> sizes;  // images of every run so far
  std::atomic<int> lone_runs{0};   // of them, in sessions for one image

 private:
  class FakeSession final : public Session {
   public:
    FakeSession(FakeEngine& engine, Lane lane)
        : engine_(engine),
          lane_(lane),
          input_(engine.info_.input.bytes() * (lane == Lane::kLatency ? 1 : engine.info_.buckets.largest())),
          logits_(engine.info_.outputs * engine.info_.buckets.largest()) {}

    std::span<std::uint8_t> input() override { return input_; }

    std::span<const float> run(std::size_t images) override {
      if (lane_ == Lane::kLatency) ++engine_.lone_runs;
      engine_.gate.pass();
      std::this_thread::sleep_for(engine_.takes.load());
      {
        const std::lock_guard lock(engine_.sizes_mutex);
        engine_.sizes.push_back(images);
      }
      int left = engine_.runs_to_fail.load();
      while (left > 0 && !engine_.runs_to_fail.compare_exchange_weak(left, left - 1)) {
      }
      if (left > 0) throw Error(ErrorKind::kDevice, "the fake device failed");
      const auto& sizes = engine_.model_.buckets;
      if (std::find(sizes.begin(), sizes.end(), images) == sizes.end()) {
        throw Error(ErrorKind::kInput, "a run of " + std::to_string(images) + " images is no bucket");
      }
      const std::size_t bytes = engine_.info_.input.bytes();
      const std::size_t outputs = engine_.info_.outputs;
      for (std::size_t i = 0; i < images; ++i) {
        engine_.model_.compute(std::span(input_).subspan(i * bytes, bytes),
                               std::span(logits_).subspan(i * outputs, outputs));
      }
      return {logits_.data(), images * outputs};
    }

   private:
    FakeEngine& engine_;
    Lane lane_;
    std::vector<std::uint8_t> input_;
    std::vector<float> logits_;
  };

  FakeModel model_;
  EngineInfo info_;
};

// The models of tests/support/tiny_bundle.py, on the host: the gater scores expert k by how near the mean
// brightness is to the middle of the k-th of K equal intervals; expert k's logits are (k + 1) times expert
// 0's, which scores the classes the same way (by the left half there; tests here use even images).
inline void score_position(double position, double scale, std::span<float> logits) {
  const auto count = static_cast<double>(logits.size());
  for (std::size_t k = 0; k < logits.size(); ++k) {
    const double middle = (static_cast<double>(k) + 0.5) / count;
    logits[k] = static_cast<float>(scale * (2 * middle * position - middle * middle));
  }
}

inline double mean_brightness(std::span<const std::uint8_t> pixels) {
  return std::accumulate(pixels.begin(), pixels.end(), 0.0) / (255.0 * static_cast<double>(pixels.size()));
}

inline FakeModel gater_model(ImageShape input, std::size_t experts) {
  return {input, experts, [](auto image, auto logits) { score_position(mean_brightness(image), 40.0, logits); }};
}

inline FakeModel expert_model(ImageShape input, std::size_t classes, std::size_t index) {
  return {input, classes, [index](auto image, auto logits) {
            score_position(mean_brightness(image), 20.0 * static_cast<double>(index + 1), logits);
          }};
}

inline std::shared_ptr<FakeEngine> fake_gater(ImageShape input, std::size_t experts) {
  return std::make_shared<FakeEngine>(gater_model(input, experts));
}

inline std::shared_ptr<FakeEngine> fake_expert(ImageShape input, std::size_t classes, std::size_t index) {
  return std::make_shared<FakeEngine>(expert_model(input, classes, index));
}

}  // namespace trt_moe::testing
