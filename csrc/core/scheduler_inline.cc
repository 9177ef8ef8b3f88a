// A lone image, from gater to answer on one thread.
#include <algorithm>
#include <cstring>
#include <utility>

#include "core/scheduler_parts.h"

namespace trt_moe {

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

void Scheduler::run_inline(const std::uint8_t* image, const OutputRows& rows, const CallTimes& times,
                           std::uint64_t waited_ns) try {
  InlineLane& lane = *inline_lane_;
  const Clock::time_point start = Clock::now();
  if (start >= times.deadline) throw missed_deadline(times, start);
  Speculation speculation(lane.speculative, image, input_.bytes());
  std::memcpy(lane.gater->input().data(), image, input_.bytes());
  const std::span<const float> scores = lane.gater->run(1);
  std::copy(scores.begin(), scores.end(), rows.gater_logits);
  const float weight = latency_weight();
  std::uint32_t route = choose_route(scores, costs_, weight);
  if (route == kNoRoute) throw error_of(bad_logits("the gater"));
  const Clock::time_point gated = Clock::now();
  // More of its call come here one by one only.
  const std::chrono::nanoseconds rest =
      (gated - start + lane.run_times[0].mean(1)) * static_cast<std::int64_t>(times.later);
  if (times.has_deadline()) {
    route = route_inline_in_time(scores, route, weight, times, rest, speculation.answers(0) ? start : gated, gated);
  }

  std::size_t expert = route;
  std::uint64_t gather_ns = 0;
  std::uint64_t expert_ns = 0;
  std::uint64_t scatter_ns = 0;
  Clock::time_point done = gated;
  for (bool verifies = false;; verifies = true) {
    const Clock::time_point begin = done;
    Session& session = *lane.experts[expert];
    const bool started = speculation.answers(expert);
    if (!started) copy_image(image, verifies, session.input().data());
    const Clock::time_point gathered = Clock::now();
    const std::span<const float> logits = started ? speculation.take() : session.run(1);
    const Clock::time_point ran = Clock::now();
    lane.run_times[expert].record(1, ran - (started ? start : begin), ran);
    if (!all_finite(logits)) throw error_of(bad_logits("expert " + experts_[expert].name));
    const float confidence = verifies ? softmax_mean(logits, rows.probabilities) : softmax(logits, rows.probabilities);
    done = Clock::now();
    gather_ns += ns_between(begin, gathered);
    expert_ns += ns_between(gathered, ran);
    scatter_ns += ns_between(ran, done);
    if (verifies || !unsure(expert, confidence)) break;
    if (RunTimes& second = lane.run_times[verifier_of(expert)]; second.expected(1) + rest > times.deadline - done) {
      second.ease(1, done);
      break;
    }
    add_one(lane.passed_on[expert]);
    expert = verifier_of(expert);
  }
  *rows.routes = static_cast<std::int64_t>(expert);
  *rows.latency_ms = ms_between(times.submitted, done);

  lane.stats.record(Stage::kGate, ns_between(start, gated));
  lane.stats.record(Stage::kQueue, waited_ns);
  lane.stats.record(Stage::kGather, gather_ns);
  lane.stats.record(Stage::kExpert, expert_ns);
  lane.stats.record(Stage::kScatter, scatter_ns);
  lane.stats.record(Stage::kTotal, ns_between(times.submitted, done));
  add_one(lane.images[expert]);
} catch (const std::exception&) {
  throw error_of(take_failure());  // the same error as from a worker
}

// The same by a worker for who does not wait. Not on a device, where its models have one worker each: this one would
// keep the gater from all that come meanwhile. False: the lane is taken, or there is company.
bool Scheduler::run_lone(const Job& job) {
  if (!gater_->info().on_host || in_flight_.load(std::memory_order_relaxed) > 1) return false;
  Request& request = *job.request;
  try {
    const std::unique_lock lane(inline_lane_->mutex, std::try_to_lock);
    if (!lane.owns_lock()) return false;
    run_inline(request.images().image(job.index), request.rows().part(job.index, classes_, experts_.size()),
               request.times(), ns_between(job.queued, Clock::now()));
  } catch (...) {
    request.fail_one(current_failure());
    return true;
  }
  request.complete_one();  // with the lane free for who comes next
  return true;
}

}  // namespace trt_moe
