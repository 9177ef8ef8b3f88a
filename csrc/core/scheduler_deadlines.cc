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
constexpr int kFewestTimings = 3;
constexpr int kTimings = 8;
constexpr std::chrono::milliseconds kTimingLimit{20};

template <typename Record>
void time_run(Session& session, std::size_t images, Record&& record) {
  const Clock::time_point begin = Clock::now();
  Clock::time_point ended = begin;
  for (int i = 0; i < kFewestTimings || (i < kTimings && ended - begin < kTimingLimit); ++i) {
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
  }
  for (std::size_t model = 0; model < run_times_.size(); ++model) {
    const CrewLine& line = line_of_[model];
    Session& session = *line.crew->workers.front()->seats[line.line]->session;
    for (const std::size_t bucket : engine(model)->info().buckets.sizes()) {
      time_run(session, bucket,
               [&](Clock::duration took, Clock::time_point at) { run_times_[model].record(bucket, took, at); });
    }
  }
}

// Until an image that enters the expert's line now is taken out of it: nothing where a worker is free, else what is
// ahead of it, shared by the workers, less what each can have at hand beside it.
std::chrono::nanoseconds Scheduler::waits_for(std::size_t expert) const noexcept {
  const Crew& crew = *line_of_[expert + 1].crew;
  const auto workers = static_cast<std::int64_t>(crew.workers.size());
  const std::int64_t images = crew.images.load(std::memory_order_relaxed);
  if (images < workers) return std::chrono::nanoseconds(0);
  const std::int64_t each_ns = crew.work_ns.load(std::memory_order_relaxed) / images;
  return std::chrono::nanoseconds(each_ns * (images - workers + 1) / workers);
}

// What the others of an image's call need at the least while the expert is at it: gater and cheapest expert for those
// that are handed in later, as that waits for this image, and where they run on the expert's workers, for those at
// hand.
std::chrono::nanoseconds Scheduler::least_for(std::size_t at_hand, std::size_t later,
                                              std::size_t expert) const noexcept {
  const bool shared = line_of_[expert + 1].crew == line_of_[kGater].crew;
  std::chrono::nanoseconds each{0};
  for (const std::size_t model : {kGater, std::size_t{1}}) {
    const std::size_t at_once = std::min(line_of_[model].crew->workers.size(), options_.max_batch);
    each += run_times_[model].per_image() / static_cast<std::int64_t>(at_once);
  }
  return each * static_cast<std::int64_t>(later + (shared ? at_hand : 0));
}

// A second look is left out rather than late. `ahead`: images that are to go before it, and are in no line yet. Images
// at hand that have not been looked at once go before it anyway.
bool Scheduler::second_in_time(const CallTimes& times, std::size_t expert, Clock::time_point now, std::size_t ahead) {
  if (!times.has_deadline()) return true;
  RunTimes& runs = run_times_[expert + 1];
  const std::chrono::nanoseconds left = times.deadline - now;
  const std::chrono::nanoseconds alone = runs.expected(1);
  if (alone > left) runs.ease(1, now);
  const auto workers = static_cast<std::int64_t>(line_of_[expert + 1].crew->workers.size());
  const std::chrono::nanoseconds line = runs.per_image() * static_cast<std::int64_t>(ahead) / workers;
  return with_slack(waits_for(expert) + line + least_for(0, times.later, expert)) + alone <= left;
}

void Scheduler::take_on(Job& job, std::size_t expert) noexcept {
  job.work_ns = std::max<std::int64_t>(1, run_times_[expert + 1].per_image().count());
  Crew& crew = *line_of_[expert + 1].crew;
  crew.work_ns.fetch_add(job.work_ns, std::memory_order_relaxed);
  crew.images.fetch_add(1, std::memory_order_relaxed);
}

void Scheduler::take_off(std::int64_t images, std::int64_t work_ns, std::size_t expert) noexcept {
  Crew& crew = *line_of_[expert + 1].crew;
  crew.work_ns.fetch_sub(work_ns, std::memory_order_relaxed);
  crew.images.fetch_sub(images, std::memory_order_relaxed);
}

std::span<const float> Scheduler::scores_of(const Job& job) const noexcept {
  return {job.request->rows().gater_logits + job.index * experts_.size(), experts_.size()};
}

// Changes the worker's plan where images of the batch must be answered in time. What each is given counts for the next.
// Those that have no route have failed, and their requests may be gone.
void Scheduler::route_in_time(std::span<Job> batch, float weight, Worker& worker) {
  for (std::size_t i = 0; i < batch.size(); ++i) {
    std::uint32_t& route = worker.plan.routes[i];
    if (route == kNoRoute) continue;
    if (has_deadline(batch[i])) route = route_in_time(batch[i], route, weight, worker);
    if (route != kNoRoute) take_on(batch[i], route);
  }
  group_by_route(experts_.size(), worker.plan);
}

// The best expert that can answer the image in time. Where none can it has failed, and has no route.
std::uint32_t Scheduler::route_in_time(const Job& job, std::uint32_t route, float weight, Worker& worker) {
  const CallTimes times = job.request->times();
  const Clock::time_point now = job.queued;
  const std::chrono::nanoseconds left = times.deadline - now;
  const std::size_t at_hand = job.request->images().count - 1 - job.index;
  for (std::size_t expert = 0; expert < experts_.size(); ++expert) {
    RunTimes& runs = run_times_[expert + 1];
    const std::chrono::nanoseconds alone = takes(runs, expert, 1);
    if (alone > left) runs.ease(1, now);
    // The others are left what they need at the least. To leave it to them, the last resort is taken.
    worker.takes[expert] =
        alone +
        (expert == 0 ? waits_for(expert) : with_slack(waits_for(expert) + least_for(at_hand, times.later, expert)));
  }
  const std::uint32_t best = choose_route_in_time(scores_of(job), costs_, weight, worker.takes, left);
  if (best == kNoRoute) {
    miss_deadline(*job.request, now);
  } else if (best != route) {
    moved_.fetch_add(1, std::memory_order_relaxed);
  }
  return best;
}

// `rest`: what the images that come later need. `start`: since when the cheapest expert has been at it.
std::uint32_t Scheduler::route_inline_in_time(std::span<const float> scores, std::uint32_t route, float weight,
                                              const CallTimes& times, std::chrono::nanoseconds rest,
                                              Clock::time_point start, Clock::time_point now) {
  InlineLane& lane = *inline_lane_;
  const std::chrono::nanoseconds left = times.deadline - now;
  for (std::size_t expert = 0; expert < experts_.size(); ++expert) {
    RunTimes& runs = lane.run_times[expert];
    lane.takes[expert] = takes(runs, expert, 1);
    if (expert == 0) lane.takes[expert] -= std::min<std::chrono::nanoseconds>(now - start, lane.takes[expert]);
    if (lane.takes[expert] > left) runs.ease(1, now);
    if (expert != 0) lane.takes[expert] += with_slack(rest);
  }
  const std::uint32_t best = choose_route_in_time(scores, costs_, weight, lane.takes, left);
  if (best == kNoRoute) throw missed_deadline(times, now);
  if (best != route) moved_.fetch_add(1, std::memory_order_relaxed);
  return best;
}

// For a routed plan, which is told of times by costs alone: to be taken with a latency weight of 1. `due`: when these
// images are to be answered, which is no later than the call's deadline.
std::span<const float> Scheduler::costs_in_time(std::deque<RunTimes>& run_times, std::size_t images,
                                                const CallTimes& times, Clock::time_point due, Clock::time_point now) {
  std::vector<float>& costs = routed_lane_->costs;
  const float weight = latency_weight();
  const std::chrono::nanoseconds left = due - now;
  bool any = false;
  for (std::size_t expert = 0; expert < experts_.size(); ++expert) {
    RunTimes& runs = run_times[expert];
    const bool fits = left.count() > 0 && takes(runs, expert, images) <= left;
    if (!fits) runs.ease(images, now);
    costs[expert] = fits ? weight * costs_[expert] : kNever;
    any = any || fits;
  }
  if (!any) throw missed_deadline(times, now);
  return costs;
}

// Of images that come to the gater after their deadline.
std::size_t Scheduler::drop_expired(std::span<Job> batch) {
  if (!any_deadline(batch)) return batch.size();
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

// Of the worker's batch, what the expert would answer too late, or so late that there is no time for the rest of the
// image's call. From the cheapest, which nobody can stand in for, only what is too late already.
std::size_t Scheduler::drop_late(std::size_t expert, Worker& worker, std::size_t count) {
  const std::span<Job> batch = std::span(worker.batch).first(count);
  if (!any_deadline(batch)) return count;
  RunTimes& runs = run_times_[expert + 1];
  const Buckets& buckets = experts_[expert].engine->info().buckets;
  const Clock::time_point now = Clock::now();
  std::chrono::nanoseconds until{0};
  std::size_t kept = 0;
  for (std::size_t begin = 0; begin < count;) {
    const std::size_t images = buckets.filled_by(count - begin);
    until += runs.expected(images);
    for (const Job& job : batch.subspan(begin, images)) {
      const CallTimes& times = job.request->times();
      const bool last_resort = expert == 0 && !job.verifies;
      // Who waits for a second look has had its first, as have most of those beside it.
      const std::size_t at_hand = job.verifies ? 0 : job.request->remaining() - 1;
      const std::chrono::nanoseconds rest = least_for(at_hand, times.later, expert);
      const bool in_time = last_resort ? now < times.deadline : until + rest <= times.deadline - now;
      if (!in_time) runs.ease(images, now);
      if (in_time || !turn_away(expert, job, worker, now)) batch[kept++] = job;
    }
    begin += images;
  }
  return kept;
}

// An image that the expert would answer too late: a cheaper one takes it, if any can. False: it is to stay.
bool Scheduler::turn_away(std::size_t expert, const Job& job, Worker& worker, Clock::time_point now) {
  const CallTimes times = job.request->times();
  Job moved = job;
  moved.waited_ns += ns_between(job.queued, now);
  moved.queued = now;
  if (job.verifies) {
    const std::int64_t first = job.request->rows().routes[job.index];
    first_looks_[static_cast<std::size_t>(first)].fetch_add(1, std::memory_order_relaxed);
    complete(moved, worker, now);
    return true;
  }
  const std::chrono::nanoseconds left = times.deadline - now;
  for (std::size_t other = 0; other < experts_.size(); ++other) {
    // Only down, so that an image never goes in circles.
    worker.takes[other] = other < expert ? takes(run_times_[other + 1], other, 1) : std::chrono::nanoseconds::max();
    if (other < expert && worker.takes[other] > left) run_times_[other + 1].ease(1, now);
  }
  const std::uint32_t best = choose_route_in_time(scores_of(job), costs_, latency_weight(), worker.takes, left);
  if (best == kNoRoute) {
    miss_deadline(*job.request, now);
    return true;
  }
  take_on(moved, best);
  moved_.fetch_add(1, std::memory_order_relaxed);
  // Not pass_on: that expert's crew may have gone home already.
  if (push(best + 1, 1, [&](std::size_t) { return moved; })) return true;
  moved_.fetch_sub(1, std::memory_order_relaxed);
  take_off(1, moved.work_ns, best);
  return false;
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
