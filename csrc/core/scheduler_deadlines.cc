// Who answers an image that must be answered in time, and whether anybody does.
#include <algorithm>
#include <array>
#include <cstdio>
#include <limits>
#include <string>

#include "core/scheduler_parts.h"

namespace trt_moe {

namespace {

// Of an expert that is not to be chosen; a logit less this is below any other score.
constexpr float kNever = std::numeric_limits<float>::max();

Failure late(const CallTimes& times, Clock::time_point now) {
  const auto ms = [](Clock::duration time) {
    std::array<char, 32> text{};
    std::snprintf(text.data(), text.size(), "%.4g", std::chrono::duration<double, std::milli>(time).count());
    return std::string(text.data());
  };
  const Clock::duration left = times.deadline - now;
  return {ErrorKind::kDeadline,
          "an image was to be answered in " + ms(times.deadline - times.submitted) + " ms, " +
              (left.count() > 0 ? "and with " + ms(left) + " ms left no expert could be done in time"
                                : "which were over before its turn came") +
              "; allow more time, or hand in fewer images at once"};
}

// What is queued is known by mean times.
std::chrono::nanoseconds with_slack(std::chrono::nanoseconds queued) { return queued + queued / 4; }

// Who is chosen only where its runs hardly exceed this; but the cheapest expert, the last resort, where it is likely to
// be in time.
std::chrono::nanoseconds takes(const RunTimes& runs, std::size_t expert, std::size_t images) {
  return expert == 0 ? runs.mean(images) : runs.expected(images);
}

// How often a model is timed before the first image, unless that takes longer than this.
constexpr int kTimings = 8;
constexpr std::chrono::milliseconds kTimingLimit{20};

template <typename Record>
void time_run(Session& session, std::size_t images, Record&& record) {
  const Clock::time_point begin = Clock::now();
  Clock::time_point ended = begin;
  for (int i = 0; i < kTimings && ended - begin < kTimingLimit; ++i) {
    const Clock::time_point start = ended;
    session.run(images);
    ended = Clock::now();
    record(ended - start, ended);
  }
}

}  // namespace

// So that the first images are judged by something. The sessions are warm, and nothing else is under way.
void Scheduler::time_runs() {
  for (std::size_t expert = 0; expert < experts_.size(); ++expert) {
    time_run(*inline_lane_->experts[expert], 1,
             [&](Clock::duration took, Clock::time_point at) { inline_lane_->run_times[expert].record(1, took, at); });
    const CrewLine& line = line_of_[expert + 1];
    Session& session = *line.crew->workers.front()->seats[line.line]->session;
    for (const std::size_t bucket : experts_[expert].engine->info().buckets.sizes()) {
      time_run(session, bucket,
               [&](Clock::duration took, Clock::time_point at) { run_times_[expert].record(bucket, took, at); });
    }
  }
}

// Until an image that enters the expert's line now is taken out of it: nothing where a worker is free, half a run where
// each has one image, and the more there are the nearer to their work, shared by the workers.
std::chrono::nanoseconds Scheduler::waits_for(std::size_t expert) const noexcept {
  const Crew& crew = *line_of_[expert + 1].crew;
  const auto workers = static_cast<std::int64_t>(crew.workers.size());
  const std::int64_t images = crew.images.load(std::memory_order_relaxed);
  if (images < workers) return std::chrono::nanoseconds(0);
  const std::int64_t each_ns = std::max<std::int64_t>(0, crew.work_ns.load(std::memory_order_relaxed)) / images;
  return std::chrono::nanoseconds(each_ns * (images - workers + 1) / workers);
}

// For a second look, which is left out rather than late.
bool Scheduler::in_time(const CallTimes& times, std::size_t expert, Clock::time_point now) const noexcept {
  return !times.has_deadline() ||
         with_slack(waits_for(expert)) + run_times_[expert].expected(1) <= times.deadline - now;
}

void Scheduler::take_on(Job& job, std::size_t expert) noexcept {
  job.work_ns = run_times_[expert].per_image().count();
  Crew& crew = *line_of_[expert + 1].crew;
  crew.work_ns.fetch_add(job.work_ns, std::memory_order_relaxed);
  crew.images.fetch_add(1, std::memory_order_relaxed);
}

// Gives the image's route to the best expert that can answer it in time. Where none can it fails, and has none.
void Scheduler::route_in_time(const Job& job, std::uint32_t& route, Worker& worker) {
  const CallTimes times = job.request->times();
  if (!times.has_deadline()) return;
  // What the images after it need at the least, of those that come with it.
  const std::int64_t others = static_cast<std::int64_t>(job.request->images().count) - 1 - job.index;
  for (std::size_t expert = 0; expert < experts_.size(); ++expert) {
    const Crew& crew = *line_of_[expert + 1].crew;
    const bool shared = expert > 0 && &crew == line_of_[1].crew;
    const auto reserved =
        run_times_[0].per_image() * (shared ? others : 0) / static_cast<std::int64_t>(crew.workers.size());
    const auto queued = waits_for(expert) + reserved;
    worker.takes[expert] = takes(run_times_[expert], expert, 1) + (expert == 0 ? queued : with_slack(queued));
  }
  const std::span scores(job.request->rows().gater_logits + job.index * experts_.size(), experts_.size());
  const std::uint32_t best =
      choose_route_in_time(scores, costs_, latency_weight(), worker.takes, times.deadline - job.queued);
  if (best == route) return;
  run_times_[route].ease(1, job.queued);
  route = best;
  if (best == kNoRoute) {
    miss_deadline(*job.request, job.queued);
  } else {
    moved_.fetch_add(1, std::memory_order_relaxed);
  }
}

std::uint32_t Scheduler::route_inline_in_time(std::span<const float> scores, std::uint32_t route,
                                              const CallTimes& times, Clock::time_point now) {
  InlineLane& lane = *inline_lane_;
  for (std::size_t expert = 0; expert < experts_.size(); ++expert) {
    lane.takes[expert] = takes(lane.run_times[expert], expert, 1);
  }
  const std::uint32_t best = choose_route_in_time(scores, costs_, latency_weight(), lane.takes, times.deadline - now);
  if (best == route) return route;
  lane.run_times[route].ease(1, now);
  if (best == kNoRoute) throw missed_deadline(times, now);
  moved_.fetch_add(1, std::memory_order_relaxed);
  return best;
}

// For a routed plan, which is told of times by costs alone: to be taken with a latency weight of 1.
std::span<const float> Scheduler::costs_in_time(std::size_t images, const CallTimes& times, Clock::time_point now) {
  RoutedLane& lane = *routed_lane_;
  const float weight = latency_weight();
  bool any = false;
  for (std::size_t expert = 0; expert < experts_.size(); ++expert) {
    RunTimes& runs = lane.run_times[expert];
    const bool fits = now < times.deadline && takes(runs, expert, images) <= times.deadline - now;
    if (!fits) runs.ease(images, now);
    lane.costs[expert] = fits ? weight * costs_[expert] : kNever;
    any = any || fits;
  }
  if (!any) throw missed_deadline(times, now);
  return lane.costs;
}

// Of images that come to the gater after their deadline.
std::size_t Scheduler::drop_expired(std::span<Job> batch) {
  const Clock::time_point now = Clock::now();
  std::size_t kept = 0;
  for (const Job& job : batch) {
    if (now < job.request->times().deadline) {
      batch[kept++] = job;
    } else {
      miss_deadline(*job.request, now);
    }
  }
  return kept;
}

// Of the worker's batch, what the expert would answer too late. From the cheapest, which nobody can stand in for, only
// what is too late already.
std::size_t Scheduler::drop_late(std::size_t expert, Worker& worker, std::size_t count) {
  const std::span<Job> batch = std::span(worker.batch).first(count);
  if (std::none_of(batch.begin(), batch.end(), [](const Job& job) { return job.request->times().has_deadline(); })) {
    return count;
  }
  const Buckets& buckets = experts_[expert].engine->info().buckets;
  const Clock::time_point now = Clock::now();
  std::chrono::nanoseconds until{0};
  std::size_t kept = 0;
  for (std::size_t begin = 0; begin < count;) {
    const std::size_t images = buckets.filled_by(count - begin);
    until += run_times_[expert].expected(images);
    for (Job& job : batch.subspan(begin, images)) {
      const bool last_resort = expert == 0 && !job.verifies;
      if ((last_resort ? std::chrono::nanoseconds(1) : until) <= job.request->times().deadline - now) {
        batch[kept++] = job;
      } else {
        run_times_[expert].ease(images, now);
        turn_away(expert, job, worker, now);
      }
    }
    begin += images;
  }
  return kept;
}

// An image that the expert would answer too late: a cheaper one takes it, if any can.
void Scheduler::turn_away(std::size_t expert, Job& job, Worker& worker, Clock::time_point now) {
  const CallTimes times = job.request->times();
  job.waited_ns += ns_between(job.queued, now);
  job.queued = now;
  if (job.verifies) {
    add_one(first_looks_[static_cast<std::size_t>(job.request->rows().routes[job.index])]);
    return complete(job, worker, now);
  }
  for (std::size_t other = 0; other < experts_.size(); ++other) {
    // Only down, so that an image never goes in circles.
    worker.takes[other] = other < expert ? takes(run_times_[other], other, 1) : std::chrono::nanoseconds::max();
  }
  const std::span scores(job.request->rows().gater_logits + job.index * experts_.size(), experts_.size());
  const std::uint32_t best = choose_route_in_time(scores, costs_, latency_weight(), worker.takes, times.deadline - now);
  if (best != kNoRoute) {
    take_on(job, best);
    moved_.fetch_add(1, std::memory_order_relaxed);
    // Not pass_on: that expert's crew may have gone home already.
    if (push(best + 1, 1, [&](std::size_t) { return job; })) return;
    moved_.fetch_sub(1, std::memory_order_relaxed);
  }
  miss_deadline(*job.request, now);
}

Error Scheduler::missed_deadline(const CallTimes& times, Clock::time_point now) {
  missed_.fetch_add(1, std::memory_order_relaxed);
  return error_of(late(times, now));
}

// What else it asked for is of no use to anybody now.
void Scheduler::miss_deadline(Request& request, Clock::time_point now) {
  if (request.cancel()) missed_.fetch_add(1, std::memory_order_relaxed);
  request.fail_one(late(request.times(), now));
}

}  // namespace trt_moe
