#include "core/job_queue.h"

#include <algorithm>

namespace trt_moe {

namespace {

// Measured on 2 CPUs: four times fills batches hardly better, and makes images of a rare expert wait longer.
constexpr std::size_t kMostPassedOver = 2;

}  // namespace

JobQueue::JobQueue(std::size_t capacity, const std::vector<BatchPolicy>& lines) {
  for (const BatchPolicy& policy : lines) lines_.push_back({policy, std::vector<Job>(capacity)});
}

JobQueue::Batch JobQueue::pop(std::span<Job> batch) {
  Batch taken;
  bool more = false;
  {
    std::unique_lock lock(mutex_);
    Line* line = nullptr;
    for (;;) {
      std::optional<Clock::time_point> next_deadline;
      line = first_ready(next_deadline);
      if (line != nullptr) break;
      if (next_deadline) {
        changed_.wait_until(lock, *next_deadline);
      } else if (closed_) {
        return {};
      } else {
        changed_.wait(lock);
      }
    }
    const BatchPolicy& policy = line->policy;
    // Images that waited for company go together; without a wait, all share what is there.
    const std::size_t sharers = policy.max_wait.count() == 0 && !more_comes(*line) ? policy.sharers : 1;
    taken.line = static_cast<std::size_t>(line - lines_.data());
    taken.jobs = next_chunk(line->size, sharers, policy.max_batch, policy.buckets);
    for (std::size_t i = 0; i < taken.jobs; ++i) {
      batch[i] = line->ring[(line->head + i) % line->ring.size()];
      if (!batch[i].patient) --line->impatient;
      if (batch[i].request->times().has_deadline()) --due_;
    }
    line->passed_over = 0;
    line->head = (line->head + taken.jobs) % line->ring.size();
    line->size -= taken.jobs;
    more = std::any_of(lines_.begin(), lines_.end(), [](const Line& each) { return each.size > 0; });
  }
  if (more) changed_.notify_one();
  return taken;
}

JobQueue::Line* JobQueue::first_ready(std::optional<Clock::time_point>& next_deadline) {
  Line* first = nullptr;
  for (Line& line : lines_) {
    if (line.size == 0) continue;
    const BatchPolicy& policy = line.policy;
    if (!closed_ && policy.max_wait.count() > 0 && !line.full() && line.impatient == 0) {
      const Clock::time_point deadline = line.first().request->submitted() + policy.max_wait;
      if (Clock::now() < deadline) {
        next_deadline = std::min(next_deadline.value_or(deadline), deadline);
        continue;
      }
    }
    if (first == nullptr || line.first().entered < first->first().entered) first = &line;
  }
  if (first != nullptr && !first->full() && more_comes(*first) && first->passed_over < kMostPassedOver) {
    ++first->passed_over;
    return &lines_.front();
  }
  return first;
}

bool JobQueue::more_comes(const Line& line) const {
  const Line& gater = lines_.front();
  const std::size_t enough = std::max(line.full_batch(), 2 * line.policy.sharers);
  return &line != &gater && gater.full() && gater.size >= enough && due_ == 0;
}

void JobQueue::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  changed_.notify_all();
}

}  // namespace trt_moe
