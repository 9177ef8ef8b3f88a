#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "core/backend.h"
#include "core/forks.h"
#include "core/job_queue.h"
#include "core/request.h"
#include "core/route_plan.h"
#include "core/run_times.h"
#include "core/stage_stats.h"

namespace trt_moe {

struct Expert {
  std::string name;
  std::shared_ptr<Engine> engine;
  float cost = 0.0F;  // relative to the dearest expert
};

// Who answers together with an expert that is unsure; nobody does with the dearest expert, the last one.
enum class VerifyBy {
  kDearest,  // the dearest expert
  kMirror,   // the expert itself, which looks once more, at the image mirrored left to right
};

struct SchedulerOptions {
  float latency_weight = 0.0F;
  float verify_below = 0.0F;  // see Scheduler::set_verify_below
  VerifyBy verify_by = VerifyBy::kDearest;
  std::size_t max_batch = 64;
  std::chrono::microseconds max_wait{0};
  std::size_t max_queue = 4096;
  bool warmup = true;
  // A lone image starts the cheapest expert beside the gater, and is answered by it only if the gater agrees. Faster
  // where most images are cheap ones, slower where the device has no room for both.
  bool speculate = false;
};

// What a routed plan answers has no gate, gather, expert and scatter times: the device does not tell.
struct SchedulerStats {
  std::array<HistogramSnapshot, kStageNames.size()> stages;
  std::vector<std::uint64_t> images;     // answered, per expert
  std::vector<std::uint64_t> passed_on;  // run, but unsure and passed on to be verified, per expert
  std::vector<std::uint64_t> batches;    // run, per expert
  std::uint64_t moved = 0;               // images, from one expert to another to be answered by a deadline
  std::uint64_t missed = 0;              // requests that no expert could answer by their deadline
  std::size_t in_flight = 0;
};

// Who answers every request: another plan, where it was given one, or the host-routed plan, which is here. That has one
// line of images for the gater and for each expert. Expert batches form across requests,
// and an image is complete as soon as its own expert is done. Models on a device have workers of their own each, and
// run side by side there; models on the host share theirs, which go where the first image waits longest since it
// entered. A lone image that meets an idle scheduler goes from gater to answer on one thread: on its caller's, or where
// models are on the host and nobody waits, on a worker's.
// Thread-safe.
class Scheduler {
 public:
  // Throws Error(kInput) when the engines do not fit each other.
  Scheduler(std::shared_ptr<Engine> gater, std::vector<Expert> experts, const SchedulerOptions& options);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // From here on `predict` goes through this plan of the same models; `submit` does not, whose images form batches
  // with others on the way, nor does what an expert was unsure of. Before the first predict only, and
  // not warmed up here: a plan is tried by who makes it.
  void use(std::shared_ptr<RoutedPlan> plan);

  // Answers every image or throws: Error(kQueueFull) with nothing taken, Error(kRouterClosed), Error(kModelOutput).
  // Of more than max_batch images, max_batch are under way at a time. `poll`: see BlockingRequest::wait. `keep`: where
  // the answers are written on the device as well; Error(kInput) unless images stay there. With a deadline
  // an image is answered by the best expert that can be in time, by what runs took so far and by what waits;
  // Error(kDeadline) where none can, which may show only when its turn comes. An answer that comes late all the same
  // is given.
  void predict(ImageBatchView images, const OutputRows& rows, void (*poll)(), const DeviceRows* keep = nullptr,
               const CallTimes& times = CallTimes::within(kNoLimit));
  // The same for images on the device, in place; Error(kInput) unless images stay there.
  void predict(const DeviceImages& images, const OutputRows& rows, void (*poll)(), const DeviceRows* keep = nullptr,
               const CallTimes& times = CallTimes::within(kNoLimit));
  bool routes_on_device() const noexcept { return routed_lane_ != nullptr; }
  // Routed there, and not verified: that takes the images through the host.
  bool images_stay_on_device() const noexcept { return routes_on_device() && verify_below() <= 0.0F; }

  // Takes a copy of one image; its answer comes out of take_completed under `ticket`.
  void submit(std::uint64_t ticket, const std::uint8_t* image, const CallTimes& times = CallTimes::within(kNoLimit));
  void take_completed(std::vector<SubmittedRequest*>& into);  // empty: closed and drained, or in a fork
  void recycle(SubmittedRequest* request);                    // every request taken must come back

  void set_latency_weight(float weight) noexcept { latency_weight_.store(weight, std::memory_order_relaxed); }
  float latency_weight() const noexcept { return latency_weight_.load(std::memory_order_relaxed); }

  // Gate, then verify: an image whose expert gives its likeliest class a probability below this is seen a second time,
  // as SchedulerOptions::verify_by says, and answered by the mean of both looks' probabilities. 0: never.
  void set_verify_below(float probability) noexcept { verify_below_.store(probability, std::memory_order_relaxed); }
  float verify_below() const noexcept { return verify_below_.load(std::memory_order_relaxed); }

  // Takes nothing new, then answers all it took, or with cancel_pending fails what waits with Error(kRouterClosed).
  // False: called by `poll` out of a predict of this scheduler, which cannot be waited for: it takes nothing new, and
  // is to be closed once more when that predict is done. In a fork nothing is done, and nothing can be.
  bool close(bool cancel_pending);
  // In a fork of the process that made it, where it may not be destroyed.
  bool forked() const noexcept { return process_.forked(); }

  bool closing() const noexcept { return closing_.load(); }

  SchedulerStats stats() const;
  std::size_t classes() const noexcept { return classes_; }
  std::size_t experts() const noexcept { return experts_.size(); }
  std::size_t max_batch() const noexcept { return options_.max_batch; }
  const ImageShape& input() const noexcept { return input_; }

 protected:
  // Calls `answer` while a place for so many images is held: nothing closes or fills up between what it does.
  // alone: nothing else is under way.
  void admit(std::size_t images, const std::function<void(bool alone)>& answer);
  // Part of such an answer; see predict.
  void answer(ImageBatchView images, const OutputRows& rows, const CallTimes& times, void (*poll)(),
              const DeviceRows* keep, bool alone);

 private:
  struct Seat;
  struct Worker;
  struct Crew;
  struct CrewLine {
    Crew* crew = nullptr;
    std::size_t line = 0;
  };
  class Admission;
  class ActivePredict;
  class Speculation;
  class WorkAtHand;
  struct InlineLane;
  struct RoutedLane;

  std::size_t places_for(std::size_t images) const noexcept;
  void gather(std::span<const Job> batch, Session& session) const;
  void run_gater(Worker& worker, Seat& seat, std::size_t count);
  void run_expert(std::size_t expert, Worker& worker, Seat& seat, std::size_t count);
  void run_inline(const std::uint8_t* image, const OutputRows& rows, const CallTimes& times, std::uint64_t waited_ns);
  bool run_lone(const Job& job);
  template <typename Images>
  void run_routed(const Images& images, const OutputRows& rows, const CallTimes& times, void (*poll)(),
                  const DeviceRows* keep, bool alone);
  template <typename Images>
  void run_routed_part(const Images& images, const OutputRows& rows, const CallTimes& times, void (*poll)(),
                       const DeviceRows* keep, bool alone);
  void check_rows(const RoutedRows& answers) const;
  // Of a failed run, inside its catch block. A device that is lost closes the scheduler, and fails all that waits.
  Failure take_failure();
  bool unsure(std::size_t expert, float confidence) const noexcept;
  std::size_t verifier_of(std::size_t expert) const noexcept;
  // For a first look as it is, for a second one mirrored where those are by mirror.
  void copy_image(const std::uint8_t* image, bool verifies, std::uint8_t* to) const;
  std::size_t drop_cancelled(std::span<Job> batch);
  void complete(const Job& job, Worker& worker, Clock::time_point done);

  // Deadlines, in scheduler_deadlines.cc.
  void time_runs();
  std::chrono::nanoseconds waits_for(std::size_t expert) const noexcept;
  std::chrono::nanoseconds least_for(std::size_t at_hand, std::size_t later, std::size_t expert) const noexcept;
  bool second_in_time(const CallTimes& times, std::size_t expert, Clock::time_point now, std::size_t ahead = 0);
  void take_on(Job& job, std::size_t expert) noexcept;
  void take_off(std::int64_t images, std::int64_t work_ns, std::size_t expert) noexcept;
  std::span<const float> scores_of(const Job& job) const noexcept;
  void route_in_time(std::span<Job> batch, float weight, Worker& worker);
  std::uint32_t route_in_time(const Job& job, std::uint32_t route, float weight, Worker& worker);
  std::uint32_t route_inline_in_time(std::span<const float> scores, std::uint32_t route, float weight,
                                     const CallTimes& times, std::chrono::nanoseconds rest, Clock::time_point start,
                                     Clock::time_point now);
  std::span<const float> costs_in_time(std::deque<RunTimes>& run_times, std::size_t images, const CallTimes& times,
                                       Clock::time_point due, Clock::time_point now);
  std::size_t drop_expired(std::span<Job> batch);
  std::size_t drop_late(std::size_t expert, Worker& worker, std::size_t count);
  bool turn_away(std::size_t expert, const Job& job, Worker& worker, Clock::time_point now);
  Error missed_deadline(const CallTimes& times, Clock::time_point now);
  void miss_deadline(Request& request, Clock::time_point now);

  const std::shared_ptr<Engine>& engine(std::size_t model) const;
  void add_crew(const std::vector<std::size_t>& models);
  void open_seats(Worker& worker, const std::vector<std::size_t>& models);
  void start_threads();
  template <typename MakeJob>
  bool push(std::size_t model, std::size_t jobs, MakeJob&& make);
  template <typename MakeJob>
  void pass_on(std::size_t model, std::size_t jobs, MakeJob&& make);
  static Failure bad_logits(const std::string& model);

  std::shared_ptr<Engine> gater_;
  std::vector<Expert> experts_;
  std::vector<float> costs_;
  SchedulerOptions options_;
  ImageShape input_;
  std::size_t classes_ = 0;
  std::atomic<float> latency_weight_;
  std::atomic<float> verify_below_;

  std::atomic<std::size_t> in_flight_{0};
  std::atomic<std::size_t> active_predicts_{0};
  std::atomic<bool> closing_{false};
  std::atomic<bool> cancel_pending_{false};
  std::once_flag lost_once_;
  Failure lost_failure_;  // written once, before lost_
  std::atomic<bool> lost_{false};

  std::vector<std::unique_ptr<Crew>> crews_;
  std::vector<CrewLine> line_of_;  // by model: of the gater, then of each expert
  std::unique_ptr<InlineLane> inline_lane_;
  std::unique_ptr<RoutedLane> routed_lane_;  // none: host-routed

  std::deque<RunTimes> run_times_;  // of the workers, by model
  // Images that stayed with their first look, as the second came too late.
  std::vector<std::atomic<std::uint64_t>> first_looks_;
  std::atomic<std::uint64_t> moved_{0};
  std::atomic<std::uint64_t> missed_{0};

  CompletionQueue completed_;
  std::mutex spare_mutex_;
  std::vector<std::unique_ptr<SubmittedRequest>> all_submitted_;
  std::vector<SubmittedRequest*> spare_;

  std::mutex close_mutex_;
  bool closed_ = false;
  ForkMark process_;
};

}  // namespace trt_moe
