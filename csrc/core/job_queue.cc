#include "core/job_queue.h"

namespace trt_moe {

std::size_t JobQueue::pop(std::span<Job> batch, const Buckets& buckets, const BatchPolicy& policy) {
  std::size_t count = 0;
  bool more = false;
  {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return size_ > 0 || closed_; });
      if (size_ == 0) return 0;
      if (closed_ || policy.max_wait.count() == 0 || size_ >= buckets.largest() || size_ >= policy.max_batch) break;
      const Clock::time_point deadline = ring_[head_].request->submitted() + policy.max_wait;
      if (Clock::now() >= deadline) break;
      changed_.wait_until(lock, deadline);
    }
    // Images that waited for company go together; without a wait, the workers share what is there.
    const std::size_t workers = policy.max_wait.count() == 0 ? policy.workers : 1;
    count = next_chunk(size_, workers, policy.max_batch, buckets);
    for (std::size_t i = 0; i < count; ++i) batch[i] = ring_[(head_ + i) % ring_.size()];
    head_ = (head_ + count) % ring_.size();
    size_ -= count;
    more = size_ > 0;
  }
  if (more) changed_.notify_one();
  return count;
}

void JobQueue::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  changed_.notify_all();
}

}  // namespace trt_moe
