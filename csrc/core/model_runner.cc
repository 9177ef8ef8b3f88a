#include "core/model_runner.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "core/on_threads.h"
#include "core/poller.h"

namespace trt_moe {

// A session on loan; it goes back to the idle ones.
class ModelRunner::Lease {
 public:
  Lease(ModelRunner& runner, Lane lane)
      : mutex_(runner.mutex_), idle_(lane == Lane::kLatency ? runner.idle_latency_ : runner.idle_throughput_) {
    {
      const std::lock_guard lock(mutex_);
      if (!idle_.empty()) {
        session_ = std::move(idle_.back());
        idle_.pop_back();
      }
    }
    if (!session_) session_ = runner.engine_->open(lane);
  }
  ~Lease() {
    const std::lock_guard lock(mutex_);
    idle_.push_back(std::move(session_));
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  Session& operator*() const noexcept { return *session_; }
  Session* operator->() const noexcept { return session_.get(); }

 private:
  std::mutex& mutex_;
  std::vector<std::unique_ptr<Session>>& idle_;
  std::unique_ptr<Session> session_;
};

void ModelRunner::logits(ImageBatchView images, float* logits, void (*poll)()) {
  process_.expect_not_forked();
  const EngineInfo& info = engine_->info();
  const auto run = [&](Session& session, std::size_t begin, std::size_t count) {
    std::memcpy(session.input().data(), images.image(begin), count * images.image_bytes);
    const std::span<const float> rows = session.run(count);
    std::copy(rows.begin(), rows.end(), logits + begin * info.outputs);
  };
  if (images.count == 1) {
    const Lease session(*this, Lane::kLatency);
    return run(*session, 0, 1);
  }

  std::atomic<std::size_t> next{0};
  const std::size_t bucket = next_chunk(images.count, info.parallel, images.count, info.buckets);
  const std::size_t chunks = (images.count + bucket - 1) / bucket;
  on_threads(std::min(info.parallel, chunks), [&](std::size_t which) {
    try {
      Poller poller(which == 0 ? poll : nullptr);
      const Lease session(*this, Lane::kThroughput);
      for (std::size_t begin = next.fetch_add(bucket); begin < images.count; begin = next.fetch_add(bucket)) {
        const std::size_t end = std::min(begin + bucket, images.count);
        while (begin < end) {
          const std::size_t count = info.buckets.filled_by(end - begin);
          run(*session, begin, count);
          begin += count;
        }
        poller();
      }
    } catch (...) {
      next.store(images.count);  // the others stop as well
      throw;
    }
  });
}

void ModelRunner::time(const std::uint8_t* image, std::size_t warmup, std::span<double> milliseconds, void (*poll)()) {
  process_.expect_not_forked();
  Poller between(poll);
  const Lease session(*this, Lane::kLatency);
  std::memcpy(session->input().data(), image, engine_->info().input.bytes());
  for (std::size_t i = 0; i < warmup; ++i) {
    session->run(1);
    between();
  }
  for (double& value : milliseconds) {
    const auto start = std::chrono::steady_clock::now();
    session->run(1);
    value = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    between();
  }
}

}  // namespace trt_moe
