#include "core/scheduler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>
#include <system_error>
#include <type_traits>
#include <utility>

#include "core/error.h"

namespace trt_moe {

namespace {

// Models are numbered: the gater, then expert k as k + 1.
constexpr std::size_t kGater = 0;

// A run may be a hand-over to threads of the runtime and back: while a worker waits for that, a spare one keeps its CPU
// busy. Measured on 2 CPUs with 16 clients: 4 workers answer a quarter more images than 2.
constexpr std::size_t kHostWorkersPerCpu = 2;

std::uint64_t ns_between(Clock::time_point from, Clock::time_point to) {
  return static_cast<std::uint64_t>(std::max<std::int64_t>(0, std::chrono::nanoseconds(to - from).count()));
}

float ms_between(Clock::time_point from, Clock::time_point to) {
  return static_cast<float>(ns_between(from, to)) * 1e-6F;
}

bool all_finite(std::span<const float> values) {
  return std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); });
}

// Returns the largest probability.
float softmax(std::span<const float> logits, float* probabilities) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  float sum = 0.0F;
  for (std::size_t i = 0; i < logits.size(); ++i) sum += probabilities[i] = std::exp(logits[i] - largest);
  for (std::size_t i = 0; i < logits.size(); ++i) probabilities[i] /= sum;
  return 1.0F / sum;
}

// Copies each job's image to its row of the session's input.
void gather(std::span<const Job> batch, Session& session) {
  std::uint8_t* row = session.input().data();
  for (const Job& job : batch) {
    const ImageBatchView& images = job.request->images();
    std::memcpy(row, images.image(job.index), images.image_bytes);
    row += images.image_bytes;
  }
}

std::string text(const ImageShape& shape) {
  return std::to_string(shape.height) + "x" + std::to_string(shape.width) + "x" + std::to_string(shape.channels);
}

Failure closed_failure() {
  return {ErrorKind::kRouterClosed, "the router is closed; open a new one with trt_moe.Router(bundle)"};
}

// For a counter that one thread writes at a time and any thread reads.
void add_one(std::uint64_t& counter) { std::atomic_ref(counter).fetch_add(1, std::memory_order_relaxed); }
void add_one(std::atomic<std::uint64_t>& counter) {
  counter.store(counter.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

Error not_on_device(const std::string& what) {
  return {ErrorKind::kInput,
          "the " + what + " are to stay on the device, but images are routed or verified on the host"};
}

Error error_of(const Failure& failure) { return {failure.kind, failure.message}; }

}  // namespace

// One worker's session of one model, and what it ran.
struct Scheduler::Seat {
  std::unique_ptr<Session> session;
  std::atomic<std::uint64_t> images{0};
  std::atomic<std::uint64_t> passed_on{0};
  std::atomic<std::uint64_t> batches{0};
};

// A thread, its seat at each model of its crew and the storage it reuses from batch to batch.
struct Scheduler::Worker {
  std::vector<std::unique_ptr<Seat>> seats;
  std::vector<Job> batch;
  std::vector<Job> unsure;
  RoutePlan plan;
  StageRecorder stats;
  std::thread thread;
};

// Workers that serve the same queue, whose lines are `models`.
struct Scheduler::Crew {
  Crew(std::size_t capacity, const std::vector<BatchPolicy>& lines, std::vector<std::size_t> served)
      : queue(capacity, lines), models(std::move(served)) {}
  JobQueue queue;
  std::vector<std::size_t> models;
  std::vector<std::unique_ptr<Worker>> workers;
};

// The caller's own thread: one latency session a model, used by one caller at a time.
struct Scheduler::InlineLane {
  std::mutex mutex;
  std::unique_ptr<Session> gater;
  std::vector<std::unique_ptr<Session>> experts;
  OverlappingSession* speculative = nullptr;  // the cheapest expert's session, where it starts beside the gater
  std::vector<std::uint64_t> images;
  std::vector<std::uint64_t> passed_on;
  StageRecorder stats;
};

// A plan that answers whole batches on the device, for one caller at a time.
struct Scheduler::RoutedLane {
  std::mutex mutex;
  std::shared_ptr<RoutedPlan> plan;
  std::vector<std::uint32_t> unsure;  // of the run, indices of images
  std::vector<bool> ran;              // in the run, by expert
  std::vector<std::uint64_t> images;
  std::vector<std::uint64_t> passed_on;
  std::vector<std::uint64_t> batches;
  StageRecorder stats;
};

// The cheapest expert at work before the gater has chosen. Where its answer is not taken, it is waited for in the end:
// its session is needed again.
class Scheduler::Speculation {
 public:
  Speculation(OverlappingSession* session, const std::uint8_t* image, std::size_t bytes) : session_(session) {
    if (session_ == nullptr) return;
    std::memcpy(session_->input().data(), image, bytes);
    session_->start(1);
  }
  ~Speculation() {
    if (session_ == nullptr) return;
    try {
      session_->finish();
    } catch (const std::exception&) {
      // Nobody asked for this answer; a device that is lost says so again.
    }
  }
  Speculation(const Speculation&) = delete;
  Speculation& operator=(const Speculation&) = delete;

  bool answers(std::size_t expert) const noexcept { return session_ != nullptr && expert == 0; }
  std::span<const float> take() { return std::exchange(session_, nullptr)->finish(); }

 private:
  OverlappingSession* session_;
};

// Lets close() wait for the calls that it found under way.
class Scheduler::ActivePredict {
 public:
  explicit ActivePredict(std::atomic<std::size_t>& count) : count_(count) { count_.fetch_add(1); }
  ~ActivePredict() {
    if (count_.fetch_sub(1) == 1) count_.notify_all();
  }
  ActivePredict(const ActivePredict&) = delete;
  ActivePredict& operator=(const ActivePredict&) = delete;

 private:
  std::atomic<std::size_t>& count_;
};

// A place for some images in the scheduler, given back on destruction.
class Scheduler::Admission {
 public:
  Admission(Scheduler& scheduler, std::size_t images) : scheduler_(scheduler), images_(images) {
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
  try {
    start_threads();
  } catch (const std::system_error& error) {
    close(true);
    throw Error(ErrorKind::kDevice, std::string("the system refused another thread: ") + error.what());
  }
}

const std::shared_ptr<Engine>& Scheduler::engine(std::size_t model) const {
  return model == kGater ? gater_ : experts_[model - 1].engine;
}

void Scheduler::add_crew(const std::vector<std::size_t>& models) {
  std::size_t at_once = 1;
  std::size_t largest = 1;
  std::vector<BatchPolicy> lines;
  for (const std::size_t model : models) {
    const EngineInfo& info = engine(model)->info();
    at_once = std::max(at_once, info.parallel);
    largest = std::max(largest, info.buckets.largest());
    lines.push_back({info.buckets, info.parallel, options_.max_batch, options_.max_wait});
  }
  const std::size_t workers = gater_->info().on_host ? kHostWorkersPerCpu * at_once : at_once;
  Crew& crew = *crews_.emplace_back(std::make_unique<Crew>(options_.max_queue, lines, models));
  line_of_.resize(experts_.size() + 1);
  for (std::size_t line = 0; line < models.size(); ++line) line_of_[models[line]] = {&crew, line};
  for (std::size_t i = 0; i < workers; ++i) {
    Worker& worker = *crew.workers.emplace_back(std::make_unique<Worker>());
    worker.batch.resize(largest);
    worker.unsure.reserve(largest);
    for (const std::size_t model : models) {
      Seat& seat = *worker.seats.emplace_back(std::make_unique<Seat>());
      seat.session = engine(model)->open(Lane::kThroughput);
      if (options_.warmup) {
        for (const std::size_t bucket : engine(model)->info().buckets.sizes()) seat.session->run(bucket);
      }
    }
  }
}

void Scheduler::start_threads() {
  for (const auto& crew : crews_) {
    for (const auto& worker : crew->workers) {
      worker->thread = std::thread([this, &crew = *crew, &worker = *worker] {
        JobQueue::Batch taken;
        while ((taken = crew.queue.pop(worker.batch)).jobs > 0) {
          const std::size_t model = crew.models[taken.line];
          Seat& seat = *worker.seats[taken.line];
          if (model == kGater) {
            run_gater(worker, seat, taken.jobs);
          } else {
            run_expert(model - 1, worker, seat, taken.jobs);
          }
        }
      });
    }
  }
}

Scheduler::~Scheduler() { close(true); }

template <typename MakeJob>
bool Scheduler::push(std::size_t model, std::size_t jobs, MakeJob&& make) {
  return line_of_[model].crew->queue.push(line_of_[model].line, jobs, make);
}

template <typename MakeJob>
void Scheduler::pass_on(std::size_t model, std::size_t jobs, MakeJob&& make) {
  line_of_[model].crew->queue.pass_on(line_of_[model].line, jobs, make);
}

Failure Scheduler::bad_logits(const std::string& model) {
  return {ErrorKind::kModelOutput, model +
                                       " gave logits that are not finite for an image; expected finite numbers. Its "
                                       "ONNX file is broken: train or export the bundle again"};
}

void Scheduler::predict(ImageBatchView images, const OutputRows& rows, void (*poll)(), const DeviceRows* keep) {
  const Clock::time_point submitted = Clock::now();
  if (keep != nullptr && !images_stay_on_device()) throw not_on_device("answers");
  const std::size_t places = std::min({images.count, options_.max_batch, options_.max_queue});
  // Counted before the admission looks whether we are closing: close() sees this call, or it is refused.
  const ActivePredict active(active_predicts_);
  const Admission admission(*this, places);
  const bool on_device = routes_on_device();
  if (images.count == 1 && admission.was_idle() && !on_device) {
    const std::unique_lock lane(inline_lane_->mutex, std::try_to_lock);
    if (lane.owns_lock()) return run_inline(images.data, rows, submitted);
  }
  if (on_device) return run_routed(images, rows, submitted, poll, keep);
  // More images than places go through in two alternating parts, so that the workers never run dry between them.
  const std::size_t part = images.count <= places ? images.count : std::max<std::size_t>(1, places / 2);
  std::array<std::optional<BlockingRequest>, 2> parts;
  try {
    std::size_t turn = 0;
    for (std::size_t begin = 0; begin < images.count; begin += part, ++turn) {
      std::optional<BlockingRequest>& request = parts[turn % (places >= 2 ? 2 : 1)];
      if (request) request->wait(poll);
      const std::size_t count = std::min(part, images.count - begin);
      request.emplace(ImageBatchView{images.image(begin), count, images.image_bytes},
                      rows.part(begin, classes_, experts_.size()), submitted);
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

void Scheduler::predict(const DeviceImages& images, const OutputRows& rows, void (*poll)(), const DeviceRows* keep) {
  const Clock::time_point submitted = Clock::now();
  if (!images_stay_on_device()) throw not_on_device("images");
  const ActivePredict active(active_predicts_);
  const Admission admission(*this, std::min({images.count, options_.max_batch, options_.max_queue}));
  run_routed(images, rows, submitted, poll, keep);
}

void Scheduler::submit(std::uint64_t ticket, const std::uint8_t* image) {
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
  request->start(ticket, image, completed_);
  if (!push(kGater, 1, [&](std::size_t) { return Job{request, 0, request->submitted(), request->submitted()}; })) {
    const std::lock_guard lock(spare_mutex_);
    spare_.push_back(request);
    throw error_of(closed_failure());
  }
  admission.keep();
}

void Scheduler::recycle(SubmittedRequest* request) {
  {
    const std::lock_guard lock(spare_mutex_);
    spare_.push_back(request);
  }
  in_flight_.fetch_sub(1);
}

void Scheduler::run_inline(const std::uint8_t* image, const OutputRows& rows, Clock::time_point submitted) try {
  InlineLane& lane = *inline_lane_;
  const Clock::time_point start = Clock::now();
  Speculation speculation(lane.speculative, image, input_.bytes());
  std::memcpy(lane.gater->input().data(), image, input_.bytes());
  const std::span<const float> scores = lane.gater->run(1);
  std::copy(scores.begin(), scores.end(), rows.gater_logits);
  const std::uint32_t route = choose_route(scores, costs_, latency_weight());
  if (route == kNoRoute) throw error_of(bad_logits("the gater"));
  const Clock::time_point gated = Clock::now();

  std::size_t expert = route;
  std::uint64_t gather_ns = 0;
  std::uint64_t expert_ns = 0;
  std::uint64_t scatter_ns = 0;
  Clock::time_point done = gated;
  while (true) {
    const Clock::time_point begin = done;
    Session& session = *lane.experts[expert];
    const bool started = speculation.answers(expert);
    if (!started) std::memcpy(session.input().data(), image, input_.bytes());
    const Clock::time_point gathered = Clock::now();
    const std::span<const float> logits = started ? speculation.take() : session.run(1);
    const Clock::time_point ran = Clock::now();
    if (!all_finite(logits)) throw error_of(bad_logits("expert " + experts_[expert].name));
    const float confidence = softmax(logits, rows.probabilities);
    done = Clock::now();
    gather_ns += ns_between(begin, gathered);
    expert_ns += ns_between(gathered, ran);
    scatter_ns += ns_between(ran, done);
    if (!unsure(expert, confidence)) break;
    add_one(lane.passed_on[expert]);
    expert = experts_.size() - 1;
  }
  *rows.routes = static_cast<std::int64_t>(expert);
  *rows.latency_ms = ms_between(submitted, done);

  lane.stats.record(Stage::kGate, ns_between(start, gated));
  lane.stats.record(Stage::kQueue, ns_between(submitted, start));
  lane.stats.record(Stage::kGather, gather_ns);
  lane.stats.record(Stage::kExpert, expert_ns);
  lane.stats.record(Stage::kScatter, scatter_ns);
  lane.stats.record(Stage::kTotal, ns_between(submitted, done));
  add_one(lane.images[expert]);
} catch (const std::exception&) {
  const Failure failure = current_failure();
  note(failure);
  throw error_of(failure);  // the same error as from a worker
}

void Scheduler::use(std::shared_ptr<RoutedPlan> plan) {
  if (options_.warmup) {
    const std::vector<std::uint8_t> black(plan->capacity() * input_.bytes());
    const ImageBatchView images{black.data(), plan->capacity(), input_.bytes()};
    plan->run(images.part(0, 1), costs_, latency_weight(), nullptr);
    plan->run(images, costs_, latency_weight(), nullptr);
  }
  routed_lane_ = std::make_unique<RoutedLane>();
  routed_lane_->unsure.reserve(plan->capacity());
  routed_lane_->plan = std::move(plan);
  routed_lane_->ran.resize(experts_.size());
  routed_lane_->images.resize(experts_.size());
  routed_lane_->passed_on.resize(experts_.size());
  routed_lane_->batches.resize(experts_.size());
}

template <typename Images>
void Scheduler::run_routed(const Images& images, const OutputRows& rows, Clock::time_point submitted, void (*poll)(),
                           const DeviceRows* keep) {
  // What is verified waits in a line, which has room for max_queue.
  const std::size_t part = std::min({routed_lane_->plan->capacity(), options_.max_batch, options_.max_queue});
  for (std::size_t begin = 0; begin < images.count; begin += part) {
    if (begin > 0 && poll != nullptr) poll();
    const std::size_t count = std::min(part, images.count - begin);
    DeviceRows kept;
    if (keep != nullptr) kept = keep->part(begin, classes_, experts_.size());
    run_routed_part(images.part(begin, count), rows.part(begin, classes_, experts_.size()), submitted, poll,
                    keep == nullptr ? nullptr : &kept);
  }
}

template <typename Images>
void Scheduler::run_routed_part(const Images& images, const OutputRows& rows, Clock::time_point submitted,
                                void (*poll)(), const DeviceRows* keep) {
  RoutedLane& lane = *routed_lane_;
  // An expert's queue takes images of the host only.
  constexpr bool kVerifies = std::is_same_v<Images, ImageBatchView>;
  std::optional<BlockingRequest> verified;
  {
    const std::lock_guard lock(lane.mutex);
    if (cancel_pending_.load(std::memory_order_relaxed)) throw error_of(closed_failure());
    const Clock::time_point start = Clock::now();
    try {
      const RoutedRows answers = lane.plan->run(images, costs_, latency_weight(), keep);
      check_rows(answers);
      std::copy(answers.routes.begin(), answers.routes.end(), rows.routes);
      std::copy(answers.gater_logits.begin(), answers.gater_logits.end(), rows.gater_logits);
      std::copy(answers.probabilities.begin(), answers.probabilities.end(), rows.probabilities);
    } catch (const std::exception&) {
      const Failure failure = current_failure();
      note(failure);
      throw error_of(failure);
    }
    const Clock::time_point done = Clock::now();
    lane.unsure.clear();
    std::fill(lane.ran.begin(), lane.ran.end(), false);
    for (std::size_t i = 0; i < images.count; ++i) {
      const auto expert = static_cast<std::size_t>(rows.routes[i]);
      if (!lane.ran[expert]) add_one(lane.batches[expert]);
      lane.ran[expert] = true;
      const float* const row = rows.probabilities + i * classes_;
      if (kVerifies && keep == nullptr && unsure(expert, *std::max_element(row, row + classes_))) {
        lane.unsure.push_back(static_cast<std::uint32_t>(i));
        add_one(lane.passed_on[expert]);
        continue;
      }
      rows.latency_ms[i] = ms_between(submitted, done);
      lane.stats.record(Stage::kQueue, ns_between(submitted, start));
      lane.stats.record(Stage::kTotal, ns_between(submitted, done));
      add_one(lane.images[expert]);
    }
    if constexpr (kVerifies) {
      if (!lane.unsure.empty()) {
        verified.emplace(images, rows, submitted);
        for (std::size_t i = lane.unsure.size(); i < images.count; ++i) verified->complete_one();
        const auto job = [&](std::size_t i) { return Job{&*verified, lane.unsure[i], done, done}; };
        if (!push(experts_.size(), lane.unsure.size(), job)) throw error_of(closed_failure());
      }
    }
  }
  if (verified) verified->wait(poll);
}

void Scheduler::check_rows(const RoutedRows& answers) const {
  for (std::size_t i = 0; i < answers.routes.size(); ++i) {
    if (answers.routes[i] < 0) throw error_of(bad_logits("the gater"));
    if (!all_finite(answers.probabilities.subspan(i * classes_, classes_))) {
      throw error_of(bad_logits("expert " + experts_[static_cast<std::size_t>(answers.routes[i])].name));
    }
  }
}

void Scheduler::note(const Failure& failure) {
  if (failure.kind != ErrorKind::kDeviceLost) return;
  std::call_once(lost_once_, [&] { lost_failure_ = failure; });
  lost_.store(true);
  closing_.store(true);
}

bool Scheduler::unsure(std::size_t expert, float confidence) const noexcept {
  return confidence < verify_below() && expert + 1 != experts_.size();
}

std::size_t Scheduler::drop_cancelled(std::span<Job> batch) {
  std::size_t kept = 0;
  const bool lost = lost_.load();
  const bool cancel_all = cancel_pending_.load(std::memory_order_relaxed);
  for (const Job& job : batch) {
    if (lost) {
      job.request->fail_one(lost_failure_);
    } else if (cancel_all) {
      job.request->fail_one(closed_failure());
    } else if (job.request->cancelled()) {
      job.request->complete_one();
    } else {
      batch[kept++] = job;
    }
  }
  return kept;
}

void Scheduler::run_gater(Worker& worker, Seat& seat, std::size_t count) {
  const Buckets& buckets = gater_->info().buckets;
  std::size_t left = drop_cancelled(std::span(worker.batch).first(count));
  // A batch that lost cancelled images may fill no bucket any more; it then runs as several that are filled.
  for (std::size_t begin = 0; begin < left;) {
    const std::span<Job> batch = std::span(worker.batch).subspan(begin, buckets.filled_by(left - begin));
    begin += batch.size();
    const Clock::time_point start = Clock::now();
    try {
      gather(batch, *seat.session);
      const std::span<const float> logits = seat.session->run(batch.size());
      plan_routes(logits, costs_, latency_weight(), worker.plan);
      for (std::size_t i = 0; i < batch.size(); ++i) {
        const auto row = logits.subspan(i * experts_.size(), experts_.size());
        std::copy(row.begin(), row.end(), batch[i].request->rows().gater_logits + batch[i].index * experts_.size());
      }
    } catch (...) {
      const Failure failure = current_failure();
      note(failure);
      for (const Job& job : batch) job.request->fail_one(failure);
      continue;
    }
    const Clock::time_point gated = Clock::now();
    for (Job& job : batch) {
      job.waited_ns = ns_between(job.queued, start);
      job.queued = gated;
      worker.stats.record(Stage::kGate, ns_between(start, gated));
    }
    for (std::size_t i = 0; i < batch.size(); ++i) {
      if (worker.plan.routes[i] == kNoRoute) batch[i].request->fail_one(bad_logits("the gater"));
    }
    for (std::size_t expert = experts_.size(); expert-- > 0;) {
      const std::span<const std::uint32_t> group = worker.plan.group(expert);
      if (!group.empty()) pass_on(expert + 1, group.size(), [&](std::size_t i) { return batch[group[i]]; });
    }
  }
}

void Scheduler::run_expert(std::size_t expert, Worker& worker, Seat& seat, std::size_t count) {
  const Buckets& buckets = experts_[expert].engine->info().buckets;
  std::size_t left = drop_cancelled(std::span(worker.batch).first(count));
  for (std::size_t begin = 0; begin < left;) {
    const std::span<Job> batch = std::span(worker.batch).subspan(begin, buckets.filled_by(left - begin));
    begin += batch.size();
    const Clock::time_point start = Clock::now();
    Clock::time_point gathered;
    std::span<const float> logits;
    try {
      gather(batch, *seat.session);
      gathered = Clock::now();
      logits = seat.session->run(batch.size());
    } catch (...) {
      const Failure failure = current_failure();
      note(failure);
      for (const Job& job : batch) job.request->fail_one(failure);
      continue;
    }
    const Clock::time_point ran = Clock::now();
    add_one(seat.batches);
    for (std::size_t i = 0; i < batch.size(); ++i) {
      Job& job = batch[i];
      const auto row = logits.subspan(i * classes_, classes_);
      if (!all_finite(row)) {
        job.request->fail_one(bad_logits("expert " + experts_[expert].name));
        continue;
      }
      const OutputRows& rows = job.request->rows();
      const float confidence = softmax(row, rows.probabilities + job.index * classes_);
      const Clock::time_point done = Clock::now();
      job.waited_ns += ns_between(job.queued, start);
      job.gather_ns += ns_between(start, gathered);
      job.expert_ns += ns_between(gathered, ran);
      job.scatter_ns += ns_between(ran, done);
      if (unsure(expert, confidence)) {
        job.queued = done;
        worker.unsure.push_back(job);
        add_one(seat.passed_on);
        continue;
      }
      rows.routes[job.index] = static_cast<std::int64_t>(expert);
      rows.latency_ms[job.index] = ms_between(job.request->submitted(), done);
      // Recorded before the image completes: whoever has all answers finds them all in stats().
      worker.stats.record(Stage::kQueue, job.waited_ns);
      worker.stats.record(Stage::kGather, job.gather_ns);
      worker.stats.record(Stage::kExpert, job.expert_ns);
      worker.stats.record(Stage::kScatter, job.scatter_ns);
      worker.stats.record(Stage::kTotal, ns_between(job.request->submitted(), done));
      add_one(seat.images);
      job.request->complete_one();
    }
    if (!worker.unsure.empty()) {
      pass_on(experts_.size(), worker.unsure.size(), [&](std::size_t i) { return worker.unsure[i]; });
      worker.unsure.clear();
    }
  }
}

void Scheduler::close(bool cancel_pending) {
  const std::lock_guard once(close_mutex_);
  if (closed_) return;
  if (cancel_pending) cancel_pending_.store(true, std::memory_order_relaxed);
  closing_.store(true);
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
}

SchedulerStats Scheduler::stats() const {
  SchedulerStats stats;
  std::vector<const StageRecorder*> recorders{&inline_lane_->stats};
  for (std::size_t expert = 0; expert < experts_.size(); ++expert) {
    const std::uint64_t alone = std::atomic_ref(inline_lane_->images[expert]).load(std::memory_order_relaxed);
    const std::uint64_t alone_unsure = std::atomic_ref(inline_lane_->passed_on[expert]).load(std::memory_order_relaxed);
    stats.images.push_back(alone);
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
  stats.in_flight = in_flight_.load(std::memory_order_relaxed);
  return stats;
}

}  // namespace trt_moe
