// The workers: threads that run the gater and the experts on batches.
#include <algorithm>
#include <atomic>

#include "core/on_threads.h"
#include "core/scheduler_parts.h"

namespace trt_moe {

namespace {

// A run may be a hand-over to threads of the runtime and back: while a worker waits for that, a spare one keeps its CPU
// busy. Measured on 2 CPUs with 16 clients: 4 workers answer a quarter more images than 2.
constexpr std::size_t kHostWorkersPerCpu = 2;

void fail(std::span<const Job> batch, const Failure& failure) {
  for (const Job& job : batch) job.request->fail_one(failure);
}

}  // namespace

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
    worker.takes.resize(experts_.size());
  }
  // As many as will run at once, since on many CPUs there are many workers.
  std::atomic<std::size_t> next{0};
  on_threads(at_once, [&](std::size_t) {
    for (std::size_t i = next++; i < workers; i = next++) open_seats(*crew.workers[i], models);
  });
}

void Scheduler::open_seats(Worker& worker, const std::vector<std::size_t>& models) {
  for (const std::size_t model : models) {
    Seat& seat = *worker.seats.emplace_back(std::make_unique<Seat>());
    seat.session = engine(model)->open(Lane::kThroughput);
    if (options_.warmup) {
      for (const std::size_t bucket : engine(model)->info().buckets.sizes()) seat.session->run(bucket);
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

// With its answer in the request's rows.
void Scheduler::complete(const Job& job, Worker& worker, Clock::time_point done) {
  const Clock::time_point submitted = job.request->submitted();
  job.request->rows().latency_ms[job.index] = ms_between(submitted, done);
  // Recorded before the image completes: whoever has all answers finds them all in stats().
  worker.stats.record(Stage::kQueue, job.waited_ns);
  worker.stats.record(Stage::kGather, job.gather_ns);
  worker.stats.record(Stage::kExpert, job.expert_ns);
  worker.stats.record(Stage::kScatter, job.scatter_ns);
  worker.stats.record(Stage::kTotal, ns_between(submitted, done));
  job.request->complete_one();
}

// Copies each job's image to its row of the session's input.
void Scheduler::gather(std::span<const Job> batch, Session& session) const {
  std::uint8_t* row = session.input().data();
  for (const Job& job : batch) {
    copy_image(job.request->images().image(job.index), job.verifies, row);
    row += input_.bytes();
  }
}

// What an expert's worker has taken out of its line, which others wait for until it has run or was dropped.
class Scheduler::WorkAtHand {
 public:
  WorkAtHand(Scheduler& scheduler, std::size_t expert, std::span<const Job> jobs)
      : scheduler_(scheduler), expert_(expert), images_(static_cast<std::int64_t>(jobs.size())), work_ns_(sum(jobs)) {}
  ~WorkAtHand() { scheduler_.take_off(images_, work_ns_, expert_); }
  WorkAtHand(const WorkAtHand&) = delete;
  WorkAtHand& operator=(const WorkAtHand&) = delete;

  void ran(std::span<const Job> jobs) {
    const std::int64_t work_ns = sum(jobs);
    scheduler_.take_off(static_cast<std::int64_t>(jobs.size()), work_ns, expert_);
    images_ -= static_cast<std::int64_t>(jobs.size());
    work_ns_ -= work_ns;
  }

 private:
  static std::int64_t sum(std::span<const Job> jobs) {
    std::int64_t work_ns = 0;
    for (const Job& job : jobs) work_ns += job.work_ns;
    return work_ns;
  }

  Scheduler& scheduler_;
  std::size_t expert_;
  std::int64_t images_;
  std::int64_t work_ns_;
};

void Scheduler::run_gater(Worker& worker, Seat& seat, std::size_t count) {
  const Buckets& buckets = gater_->info().buckets;
  const std::size_t wanted = drop_cancelled(std::span(worker.batch).first(count));
  const std::size_t left = drop_expired(std::span(worker.batch).first(wanted));
  if (left == 1 && run_lone(worker.batch.front())) return;
  // A batch that lost cancelled images may fill no bucket any more; it then runs as several that are filled.
  for (std::size_t begin = 0; begin < left;) {
    const std::span<Job> batch = std::span(worker.batch).subspan(begin, buckets.filled_by(left - begin));
    begin += batch.size();
    const Clock::time_point start = Clock::now();
    const float weight = latency_weight();
    try {
      gather(batch, *seat.session);
      const std::span<const float> logits = seat.session->run(batch.size());
      run_times_[kGater].record(batch.size(), Clock::now() - start, start);
      plan_routes(logits, costs_, weight, worker.plan);
      for (std::size_t i = 0; i < batch.size(); ++i) {
        const auto row = logits.subspan(i * experts_.size(), experts_.size());
        std::copy(row.begin(), row.end(), batch[i].request->rows().gater_logits + batch[i].index * experts_.size());
      }
    } catch (...) {
      fail(batch, take_failure());
      continue;
    }
    const Clock::time_point gated = Clock::now();
    const bool due = any_deadline(batch);
    for (Job& job : batch) {
      job.waited_ns = ns_between(job.queued, start);
      job.queued = gated;
      worker.stats.record(Stage::kGate, ns_between(start, gated));
    }
    for (std::size_t i = 0; i < batch.size(); ++i) {
      if (worker.plan.routes[i] == kNoRoute) batch[i].request->fail_one(bad_logits("the gater"));
    }
    if (due) route_in_time(batch, weight, worker);
    for (std::size_t expert = experts_.size(); expert-- > 0;) {
      const std::span<const std::uint32_t> group = worker.plan.group(expert);
      for (const std::uint32_t i : group) {
        if (batch[i].work_ns == 0) take_on(batch[i], expert);
      }
      if (!group.empty()) pass_on(expert + 1, group.size(), [&](std::size_t i) { return batch[group[i]]; });
    }
  }
}

void Scheduler::run_expert(std::size_t expert, Worker& worker, Seat& seat, std::size_t count) {
  const Buckets& buckets = experts_[expert].engine->info().buckets;
  WorkAtHand work(*this, expert, std::span(worker.batch).first(count));
  const std::size_t left = drop_late(expert, worker, drop_cancelled(std::span(worker.batch).first(count)));
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
      fail(batch, take_failure());
      continue;
    }
    const Clock::time_point ran = Clock::now();
    work.ran(batch);
    run_times_[expert + 1].record(batch.size(), ran - start, ran);
    add_one(seat.batches);
    for (std::size_t i = 0; i < batch.size(); ++i) {
      Job& job = batch[i];
      const auto row = logits.subspan(i * classes_, classes_);
      if (!all_finite(row)) {
        job.request->fail_one(bad_logits("expert " + experts_[expert].name));
        continue;
      }
      const OutputRows& rows = job.request->rows();
      float* const probabilities = rows.probabilities + job.index * classes_;
      const float confidence = job.verifies ? softmax_mean(row, probabilities) : softmax(row, probabilities);
      const Clock::time_point done = Clock::now();
      job.waited_ns += ns_between(job.queued, start);
      job.gather_ns += ns_between(start, gathered);
      job.expert_ns += ns_between(gathered, ran);
      job.scatter_ns += ns_between(ran, done);
      rows.routes[job.index] = static_cast<std::int64_t>(expert);
      if (!job.verifies && unsure(expert, confidence) &&
          second_in_time(job.request->times(), verifier_of(expert), done)) {
        job.queued = done;
        job.verifies = true;
        take_on(job, verifier_of(expert));
        worker.unsure.push_back(job);
        add_one(seat.passed_on);
        continue;
      }
      add_one(seat.images);
      complete(job, worker, done);
    }
    if (!worker.unsure.empty()) {
      pass_on(verifier_of(expert) + 1, worker.unsure.size(), [&](std::size_t i) { return worker.unsure[i]; });
      worker.unsure.clear();
    }
  }
}

}  // namespace trt_moe
