// Whole batches that a routed plan answers on the device.
#include <algorithm>
#include <optional>
#include <type_traits>
#include <utility>

#include "core/poller.h"
#include "core/scheduler_parts.h"

namespace trt_moe {

namespace {

// Up to the first that is no less than `most`.
std::vector<std::size_t> powers_of_two(std::size_t most) {
  std::vector<std::size_t> powers{1};
  while (powers.back() < most) powers.push_back(powers.back() * 2);
  return powers;
}

}  // namespace

void Scheduler::use(std::shared_ptr<RoutedPlan> plan) {
  routed_lane_ = std::make_unique<RoutedLane>();
  routed_lane_->unsure.resize(experts_.size());
  for (auto& images : routed_lane_->unsure) images.reserve(plan->capacity());
  routed_lane_->plan = std::move(plan);
  routed_lane_->ran.resize(experts_.size());
  routed_lane_->images.resize(experts_.size());
  routed_lane_->passed_on.resize(experts_.size());
  routed_lane_->batches.resize(experts_.size());
  const Buckets sizes(powers_of_two(routed_lane_->plan->capacity()), Batching::kPadded);
  for (std::size_t expert = 0; expert < experts_.size(); ++expert) {
    routed_lane_->run_times.emplace_back(sizes);
    routed_lane_->run_times_there.emplace_back(sizes);
  }
  routed_lane_->costs.resize(experts_.size());
}

template <typename Images>
void Scheduler::run_routed(const Images& images, const OutputRows& rows, const CallTimes& times, void (*poll)(),
                           const DeviceRows* keep, bool alone) {
  // What is verified waits in a line, which has room for max_queue.
  const std::size_t part = std::min({routed_lane_->plan->capacity(), options_.max_batch, options_.max_queue});
  Poller between(poll);
  for (std::size_t begin = 0; begin < images.count; begin += part) {
    between();
    const std::size_t count = std::min(part, images.count - begin);
    DeviceRows kept;
    if (keep != nullptr) kept = keep->part(begin, classes_, experts_.size());
    run_routed_part(images.part(begin, count), rows.part(begin, classes_, experts_.size()),
                    times.before(images.count - begin - count), poll, keep == nullptr ? nullptr : &kept, alone);
  }
}

template <typename Images>
void Scheduler::run_routed_part(const Images& images, const OutputRows& rows, const CallTimes& times, void (*poll)(),
                                const DeviceRows* keep, bool alone) {
  RoutedLane& lane = *routed_lane_;
  // An expert's queue takes images of the host only.
  constexpr bool kVerifies = std::is_same_v<Images, ImageBatchView>;
  std::deque<RunTimes>& run_times = kVerifies ? lane.run_times : lane.run_times_there;
  std::optional<BlockingRequest> verified;
  const Clock::time_point entered = Clock::now();
  {
    const std::lock_guard lock(lane.mutex);
    if (cancel_pending_.load(std::memory_order_relaxed)) throw error_of(closed_failure());
    const Clock::time_point start = Clock::now();
    RoutedCall call{costs_, latency_weight(), keep, alone};
    CallTimes part = times;
    part.deadline = times.share(images.count, start);
    part.later = 0;
    if (times.has_deadline()) {
      call.costs = costs_in_time(run_times, images.count, times, part.deadline, start);
      call.latency_weight = 1.0F;
    }
    try {
      const RoutedRows answers = lane.plan->run(images, call);
      check_rows(answers);
      std::copy(answers.routes.begin(), answers.routes.end(), rows.routes);
      std::copy(answers.gater_logits.begin(), answers.gater_logits.end(), rows.gater_logits);
      std::copy(answers.probabilities.begin(), answers.probabilities.end(), rows.probabilities);
    } catch (const std::exception&) {
      throw error_of(take_failure());
    }
    const Clock::time_point done = Clock::now();
    for (auto& indices : lane.unsure) indices.clear();
    const auto dearest = static_cast<std::size_t>(*std::max_element(rows.routes, rows.routes + images.count));
    run_times[dearest].record(images.count, done - start, done);
    std::size_t sure = images.count;
    std::fill(lane.ran.begin(), lane.ran.end(), false);
    for (std::size_t i = 0; i < images.count; ++i) {
      const auto expert = static_cast<std::size_t>(rows.routes[i]);
      if (!lane.ran[expert]) add_one(lane.batches[expert]);
      lane.ran[expert] = true;
      const float* const row = rows.probabilities + i * classes_;
      if (kVerifies && keep == nullptr && unsure(expert, *std::max_element(row, row + classes_)) &&
          second_in_time(part, verifier_of(expert), done, lane.unsure[verifier_of(expert)].size())) {
        lane.unsure[verifier_of(expert)].push_back(static_cast<std::uint32_t>(i));
        --sure;
        add_one(lane.passed_on[expert]);
        continue;
      }
      rows.latency_ms[i] = ms_between(times.submitted, done);
      lane.stats.record(Stage::kQueue, ns_between(entered, start));
      lane.stats.record(Stage::kTotal, ns_between(times.submitted, done));
      add_one(lane.images[expert]);
    }
    if constexpr (kVerifies) {
      if (sure < images.count) {
        verified.emplace(images, rows, part);
        for (std::size_t i = 0; i < sure; ++i) verified->complete_one();
      }
      for (std::size_t expert = 0; expert < experts_.size(); ++expert) {
        const auto& indices = lane.unsure[expert];
        const auto job = [&](std::size_t i) {
          Job each{.request = &*verified, .index = indices[i], .entered = done, .queued = done, .verifies = true};
          take_on(each, expert);
          return each;
        };
        if (indices.empty() || push(expert + 1, indices.size(), job)) continue;
        for (std::size_t i = 0; i < indices.size(); ++i) verified->fail_one(closed_failure());
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

template void Scheduler::run_routed(const ImageBatchView&, const OutputRows&, const CallTimes&, void (*)(),
                                    const DeviceRows*, bool);
template void Scheduler::run_routed(const DeviceImages&, const OutputRows&, const CallTimes&, void (*)(),
                                    const DeviceRows*, bool);

}  // namespace trt_moe
