#include "core/scheduler.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <optional>
#include <system_error>
#include <utility>

#include "core/mirror.h"
#include "core/on_threads.h"
#include "core/poller.h"
#include "core/scheduler_parts.h"

namespace trt_moe {

namespace {

std::string text(const ImageShape& shape) {
  return std::to_string(shape.height) + "x" + std::to_string(shape.width) + "x" + std::to_string(shape.channels);
}

Error not_on_device(const std::string& what) {
  return {ErrorKind::kInput,
          "the " + what + " are to stay on the device, but images are routed or verified on the host"};
}

}  // namespace

// Lets close() wait for the calls that it found under way, but for its own thread's.
class Scheduler::ActivePredict {
 public:
  explicit ActivePredict(Scheduler& scheduler) : scheduler_(scheduler), outer_(std::exchange(innermost_, this)) {
    scheduler_.active_predicts_.fetch_add(1);
  }
  ~ActivePredict() {
    if (scheduler_.active_predicts_.fetch_sub(1) == 1) scheduler_.active_predicts_.notify_all();
    innermost_ = outer_;
  }
  ActivePredict(const ActivePredict&) = delete;
  ActivePredict& operator=(const ActivePredict&) = delete;

  static bool on_this_thread(const Scheduler& scheduler) noexcept {
    const ActivePredict* call = innermost_;
    while (call != nullptr && &call->scheduler_ != &scheduler) call = call->outer_;
    return call != nullptr;
  }

 private:
  static thread_local const ActivePredict* innermost_;  // calls nest where `poll` predicts

  Scheduler& scheduler_;
  const ActivePredict* outer_;
};

thread_local const Scheduler::ActivePredict* Scheduler::ActivePredict::innermost_ = nullptr;

// A place for some images in the scheduler, given back on destruction.
class Scheduler::Admission {
 public:
  Admission(Scheduler& scheduler, std::size_t images) : scheduler_(scheduler), images_(images) {
    scheduler.process_.expect_not_forked();
    const std::size_t limit = scheduler.options_.max_queue;
    std::size_t before = scheduler.in_flight_.load(std::memory_order_relaxed);
    do {
      if (before + images > limit) {
        throw Error(ErrorKind::kQueueFull, "the router holds " + std::to_string(before) + " unfinished images and " +
                                               std::to_string(images) + " more do not fit in max_queue=" +
                                               std::to_string(limit) + "; wait for answers or raise max_queue");
      }
    } while (!scheduler.in_flight_.compare_exchange_weak(before, before + images));
    was_idle_ = before == 0;
    if (scheduler.closing_.load()) {
      scheduler.in_flight_.fetch_sub(images);
      throw error_of(scheduler.lost_.load() ? scheduler.lost_failure_ : closed_failure());
    }
  }
  ~Admission() { scheduler_.in_flight_.fetch_sub(images_); }
  Admission(const Admission&) = delete;
  Admission& operator=(const Admission&) = delete;

  bool was_idle() const noexcept { return was_idle_; }
  void keep() noexcept { images_ = 0; }  // the images outlive this call; recycle() gives their places back

 private:
  Scheduler& scheduler_;
  std::size_t images_;
  bool was_idle_ = false;
};

Scheduler::Scheduler(std::shared_ptr<Engine> gater, std::vector<Expert> experts, const SchedulerOptions& options)
    : gater_(std::move(gater)),
      experts_(std::move(experts)),
      options_(options),
      input_(gater_->info().input),
      latency_weight_(options.latency_weight),
      verify_below_(options.verify_below) {
  if (experts_.size() != gater_->info().outputs) {
    throw Error(ErrorKind::kInput, "the gater scores " + std::to_string(gater_->info().outputs) + " experts, but " +
                                       std::to_string(experts_.size()) + " were given");
  }
  classes_ = experts_.front().engine->info().outputs;
  for (const Expert& expert : experts_) {
    costs_.push_back(expert.cost);
    const EngineInfo& info = expert.engine->info();
    if (info.outputs != classes_ || info.input != input_) {
      throw Error(ErrorKind::kInput, "expert " + expert.name + " takes " + text(info.input) + " images and knows " +
                                         std::to_string(info.outputs) + " classes; expected " + text(input_) + " and " +
                                         std::to_string(classes_) + " like the others");
    }
  }
  if (options_.max_batch == 0 || options_.max_queue == 0) {
    throw Error(ErrorKind::kInput, "max_batch and max_queue are " + std::to_string(options_.max_batch) + " and " +
                                       std::to_string(options_.max_queue) + "; expected at least 1 each");
  }

  inline_lane_ = std::make_unique<InlineLane>();
  inline_lane_->gater = gater_->open(Lane::kLatency);
  for (const Expert& expert : experts_) inline_lane_->experts.push_back(expert.engine->open(Lane::kLatency));
  if (options_.speculate) {
    inline_lane_->speculative = dynamic_cast<OverlappingSession*>(inline_lane_->experts.front().get());
    const auto same = [&](const Expert& expert) { return expert.engine == experts_.front().engine; };
    if (inline_lane_->speculative == nullptr || gater_ == experts_.front().engine ||
        std::any_of(experts_.begin() + 1, experts_.end(), same)) {
      throw Error(ErrorKind::kInput, "speculate is set, but expert " + experts_.front().name +
                                         " cannot run beside the gater: it is on the CPU, or one model is there twice; "
                                         "expected a model of its own on a CUDA device");
    }
  }
  inline_lane_->images.resize(experts_.size());
  inline_lane_->passed_on.resize(experts_.size());
  inline_lane_->takes.resize(experts_.size());
  run_times_.emplace_back(gater_->info().buckets);
  for (const Expert& expert : experts_) {
    inline_lane_->run_times.emplace_back(Buckets({1}));
    run_times_.emplace_back(expert.engine->info().buckets);
  }
  first_looks_ = std::vector<std::atomic<std::uint64_t>>(experts_.size());
  if (options_.warmup) {
    inline_lane_->gater->run(1);
    for (const auto& session : inline_lane_->experts) session->run(1);
  }

  // Upstream first, for close(): by the time that a queue closes, no other crew passes anything on to it.
  std::vector<std::size_t> models(experts_.size() + 1);
  std::iota(models.begin(), models.end(), 0);
  if (gater_->info().on_host) {
    // Of what one request waits for, the dearest expert goes first: it takes longest, and the small batches of cheap
    // ones then fill the workers' last gap.
    std::reverse(models.begin() + 1, models.end());
    add_crew(models);
  } else {
    for (const std::size_t model : models) add_crew({model});
  }
  if (options_.warmup) time_runs();
  try {
    start_threads();
  } catch (const std::system_error& error) {
    close(true);
    throw thread_refused(error);
  }
}

Scheduler::~Scheduler() { close(true); }

Failure Scheduler::bad_logits(const std::string& model) {
  return {ErrorKind::kModelOutput, model +
                                       " gave logits that are not finite for an image; expected finite numbers. Its "
                                       "ONNX file is broken: train or export the bundle again"};
}

void Scheduler::predict(ImageBatchView images, const OutputRows& rows, void (*poll)(), const DeviceRows* keep,
                        const CallTimes& times) {
  if (keep != nullptr && !images_stay_on_device()) throw not_on_device("answers");
  // Counted before the admission looks whether we are closing: close() sees this call, or it is refused.
  const ActivePredict active(*this);
  const Admission admission(*this, places_for(images.count));
  answer(images, rows, times, poll, keep, admission.was_idle());
}

void Scheduler::admit(std::size_t images, const std::function<void(bool)>& answer) {
  const ActivePredict active(*this);
  const Admission admission(*this, places_for(images));
  answer(admission.was_idle());
}

std::size_t Scheduler::places_for(std::size_t images) const noexcept {
  return std::min({images, options_.max_batch, options_.max_queue});
}

void Scheduler::answer(ImageBatchView images, const OutputRows& rows, const CallTimes& times, void (*poll)(),
                       const DeviceRows* keep, bool alone) {
  if (routes_on_device()) return run_routed(images, rows, times, poll, keep, alone);
  if (images.count == 1 && alone) {
    const std::unique_lock lane(inline_lane_->mutex, std::try_to_lock);
    if (lane.owns_lock()) return run_inline(images.data, rows, times, 0);
  }
  const std::size_t places = places_for(images.count);
  // More images than places go through in two alternating parts, so that the workers never run dry between them.
  const std::size_t part = images.count <= places ? images.count : std::max<std::size_t>(1, places / 2);
  std::array<std::optional<BlockingRequest>, 2> parts;
  Poller between(poll);
  try {
    std::size_t turn = 0;
    for (std::size_t begin = 0; begin < images.count; begin += part, ++turn) {
      std::optional<BlockingRequest>& request = parts[turn % (places >= 2 ? 2 : 1)];
      if (request) {
        request->wait(poll);
        between();
      }
      const std::size_t count = std::min(part, images.count - begin);
      request.emplace(ImageBatchView{images.image(begin), count, images.image_bytes},
                      rows.part(begin, classes_, experts_.size()), times.before(images.count - begin - count));
      const Clock::time_point queued = Clock::now();
      const auto job = [&](std::size_t i) { return Job{&*request, static_cast<std::uint32_t>(i), queued, queued}; };
      if (!push(kGater, count, job)) {
        request.reset();
        throw error_of(closed_failure());
      }
    }
    for (std::optional<BlockingRequest>& request : parts) {
      if (request) request->wait(poll);
    }
  } catch (...) {
    for (std::optional<BlockingRequest>& request : parts) {
      if (request) request->abandon();
    }
    throw;
  }
}

void Scheduler::predict(const DeviceImages& images, const OutputRows& rows, void (*poll)(), const DeviceRows* keep,
                        const CallTimes& times) {
  if (!images_stay_on_device()) throw not_on_device("images");
  const ActivePredict active(*this);
  const Admission admission(*this, places_for(images.count));
  run_routed(images, rows, times, poll, keep, admission.was_idle());
}

void Scheduler::submit(std::uint64_t ticket, const std::uint8_t* image, const CallTimes& times) {
  Admission admission(*this, 1);
  SubmittedRequest* request = nullptr;
  {
    const std::lock_guard lock(spare_mutex_);
    if (spare_.empty()) {
      all_submitted_.push_back(std::make_unique<SubmittedRequest>(input_.bytes(), classes_, experts_.size()));
      spare_.reserve(all_submitted_.size());
      request = all_submitted_.back().get();
    } else {
      request = spare_.back();
      spare_.pop_back();
    }
  }
  request->start(ticket, image, times, completed_);
  const Job job{
      .request = request, .entered = times.submitted, .queued = times.submitted, .patient = !times.has_deadline()};
  if (!push(kGater, 1, [&](std::size_t) { return job; })) {
    const std::lock_guard lock(spare_mutex_);
    spare_.push_back(request);
    throw error_of(closed_failure());
  }
  admission.keep();
}

void Scheduler::take_completed(std::vector<SubmittedRequest*>& into) {
  into.clear();
  // Nobody closes the queue there.
  if (!forked()) completed_.take(into);
}

void Scheduler::recycle(SubmittedRequest* request) {
  {
    const std::lock_guard lock(spare_mutex_);
    spare_.push_back(request);
  }
  in_flight_.fetch_sub(1);
}

Failure Scheduler::take_failure() {
  Failure failure = current_failure();
  if (failure.kind == ErrorKind::kDeviceLost) {
    std::call_once(lost_once_, [&] { lost_failure_ = failure; });
    lost_.store(true);
    closing_.store(true);
  }
  return failure;
}

bool Scheduler::unsure(std::size_t expert, float confidence) const noexcept {
  return confidence < verify_below() && expert + 1 != experts_.size();
}

std::size_t Scheduler::verifier_of(std::size_t expert) const noexcept {
  return options_.verify_by == VerifyBy::kMirror ? expert : experts_.size() - 1;
}

void Scheduler::copy_image(const std::uint8_t* image, bool verifies, std::uint8_t* to) const {
  if (verifies && options_.verify_by == VerifyBy::kMirror) {
    copy_mirrored(image, input_, to);
  } else {
    std::memcpy(to, image, input_.bytes());
  }
}

bool Scheduler::close(bool cancel_pending) {
  if (forked()) return true;
  // At once, for a close that another thread waits in as well.
  if (cancel_pending) cancel_pending_.store(true, std::memory_order_relaxed);
  closing_.store(true);
  if (ActivePredict::on_this_thread(*this)) return false;
  const std::lock_guard once(close_mutex_);
  if (closed_) return true;
  for (std::size_t active = active_predicts_.load(); active != 0; active = active_predicts_.load()) {
    active_predicts_.wait(active);
  }
  for (const auto& crew : crews_) {
    crew->queue.close();
    for (const auto& worker : crew->workers) {
      if (worker->thread.joinable()) worker->thread.join();
    }
  }
  completed_.close();
  closed_ = true;
  return true;
}

SchedulerStats Scheduler::stats() const {
  SchedulerStats stats;
  std::vector<const StageRecorder*> recorders{&inline_lane_->stats};
  for (std::size_t expert = 0; expert < experts_.size(); ++expert) {
    const std::uint64_t alone = std::atomic_ref(inline_lane_->images[expert]).load(std::memory_order_relaxed);
    const std::uint64_t alone_unsure = std::atomic_ref(inline_lane_->passed_on[expert]).load(std::memory_order_relaxed);
    stats.images.push_back(alone + first_looks_[expert].load(std::memory_order_relaxed));
    stats.passed_on.push_back(alone_unsure);
    stats.batches.push_back(alone + alone_unsure);
  }
  for (const auto& crew : crews_) {
    for (const auto& worker : crew->workers) {
      recorders.push_back(&worker->stats);
      for (std::size_t line = 0; line < crew->models.size(); ++line) {
        if (crew->models[line] == kGater) continue;
        const std::size_t expert = crew->models[line] - 1;
        const Seat& seat = *worker->seats[line];
        stats.images[expert] += seat.images.load(std::memory_order_relaxed);
        stats.passed_on[expert] += seat.passed_on.load(std::memory_order_relaxed);
        stats.batches[expert] += seat.batches.load(std::memory_order_relaxed);
      }
    }
  }
  if (routed_lane_) {
    recorders.push_back(&routed_lane_->stats);
    for (std::size_t expert = 0; expert < experts_.size(); ++expert) {
      stats.images[expert] += std::atomic_ref(routed_lane_->images[expert]).load(std::memory_order_relaxed);
      stats.passed_on[expert] += std::atomic_ref(routed_lane_->passed_on[expert]).load(std::memory_order_relaxed);
      stats.batches[expert] += std::atomic_ref(routed_lane_->batches[expert]).load(std::memory_order_relaxed);
    }
  }
  for (std::size_t stage = 0; stage < kStageNames.size(); ++stage) {
    for (const StageRecorder* recorder : recorders) stats.stages[stage].merge(recorder->snapshot(stage));
  }
  stats.moved = moved_.load(std::memory_order_relaxed);
  stats.missed = missed_.load(std::memory_order_relaxed);
  stats.in_flight = in_flight_.load(std::memory_order_relaxed);
  return stats;
}

}  // namespace trt_moe
