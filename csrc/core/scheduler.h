#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/backend.h"
#include "core/job_queue.h"
#include "core/request.h"
#include "core/route_plan.h"
#include "core/stage_stats.h"

namespace trt_moe {

struct Expert {
  std::string name;
  std::shared_ptr<Engine> engine;
  float cost = 0.0F;  // relative to the dearest expert
};

struct SchedulerOptions {
  float latency_weight = 0.0F;
  std::size_t max_batch = 64;
  std::chrono::microseconds max_wait{0};
  std::size_t max_queue = 4096;
  bool warmup = true;
};

struct SchedulerStats {
  std::array<HistogramSnapshot, kStageNames.size()> stages;
  std::vector<std::uint64_t> images;   // answered, per expert
  std::vector<std::uint64_t> batches;  // run, per expert
  std::size_t in_flight = 0;
};

// The host-routed plan: one queue and one set of workers for the gater and for each expert. Expert batches
// form across requests, and an image is complete as soon as its own expert is done. A lone image that meets
// an idle scheduler is answered on its caller's thread, with no hand-over. Thread-safe.
class Scheduler {
 public:
  // Throws Error(kInput) when the engines do not fit each other.
  Scheduler(std::shared_ptr<Engine> gater, std::vector<Expert> experts, const SchedulerOptions& options);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Answers every image or throws: Error(kQueueFull) with nothing taken, Error(kRouterClosed), Error(kModelOutput).
  // Of more than max_batch images, max_batch are under way at a time. `poll`: see BlockingRequest::wait.
  void predict(ImageBatchView images, const OutputRows& rows, void (*poll)());

  // Takes a copy of one image; its answer comes out of take_completed under `ticket`.
  void submit(std::uint64_t ticket, const std::uint8_t* image);
  void take_completed(std::vector<SubmittedRequest*>& into) { completed_.take(into); }
  void recycle(SubmittedRequest* request);  // every request taken must come back

  void set_latency_weight(float weight) noexcept { latency_weight_.store(weight, std::memory_order_relaxed); }
  float latency_weight() const noexcept { return latency_weight_.load(std::memory_order_relaxed); }

  // Takes nothing new, then answers all it took, or with cancel_pending fails what waits with Error(kRouterClosed).
  void close(bool cancel_pending);

  bool closing() const noexcept { return closing_.load(); }

  SchedulerStats stats() const;
  std::size_t classes() const noexcept { return classes_; }
  std::size_t experts() const noexcept { return experts_.size(); }
  const ImageShape& input() const noexcept { return input_; }

 private:
  struct Worker;
  struct Station;
  class Admission;
  class ActivePredict;
  struct InlineLane;

  void run_gater(Worker& worker, std::size_t count);
  void run_expert(std::size_t expert, Worker& worker, std::size_t count);
  void run_inline(const std::uint8_t* image, const OutputRows& rows, Clock::time_point submitted);
  std::size_t drop_cancelled(std::span<Job> batch);
  void fill_station(Station& station, const std::shared_ptr<Engine>& engine);
  void start_threads();
  void stop_station(Station& station);
  static Failure bad_logits(const std::string& model);

  std::shared_ptr<Engine> gater_;
  std::vector<Expert> experts_;
  std::vector<float> costs_;
  SchedulerOptions options_;
  ImageShape input_;
  std::size_t classes_ = 0;
  std::atomic<float> latency_weight_;

  std::atomic<std::size_t> in_flight_{0};
  std::atomic<std::size_t> active_predicts_{0};
  std::atomic<bool> closing_{false};
  std::atomic<bool> cancel_pending_{false};

  std::unique_ptr<Station> gate_station_;
  std::vector<std::unique_ptr<Station>> expert_stations_;
  std::unique_ptr<InlineLane> inline_lane_;

  CompletionQueue completed_;
  std::mutex spare_mutex_;
  std::vector<std::unique_ptr<SubmittedRequest>> all_submitted_;
  std::vector<SubmittedRequest*> spare_;

  std::mutex close_mutex_;
  bool closed_ = false;
};

}  // namespace trt_moe
