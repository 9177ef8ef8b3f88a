#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "core/buckets.h"
#include "core/request.h"

namespace trt_moe {

// One image on its way through the models.
struct Job {
  Request* request = nullptr;
  std::uint32_t index = 0;   // the image within its request
  Clock::time_point queued;  // when it entered the queue it is in
  // In earlier queues, and with an expert that was unsure:
  std::uint64_t waited_ns = 0;
  std::uint64_t gather_ns = 0;
  std::uint64_t expert_ns = 0;
  std::uint64_t scatter_ns = 0;
};

struct BatchPolicy {
  std::size_t workers = 1;
  std::size_t max_batch = 64;
  std::chrono::microseconds max_wait{0};  // for a fuller batch, counted from the image's submission
};

// First in, first out, with room for `capacity` jobs set aside at construction. The caller keeps within it.
class JobQueue {
 public:
  explicit JobQueue(std::size_t capacity) : ring_(capacity) {}

  // Adds make(0) .. make(count - 1), or nothing: false when the queue is closed.
  template <typename MakeJob>
  bool push(std::size_t count, MakeJob&& make) {
    {
      const std::lock_guard lock(mutex_);
      if (closed_) return false;
      for (std::size_t i = 0; i < count; ++i) ring_[(head_ + size_ + i) % ring_.size()] = make(i);
      size_ += count;
    }
    if (count == 1) {
      changed_.notify_one();
    } else {
      changed_.notify_all();
    }
    return true;
  }

  // Moves the next batch into `batch` and returns its size; blocks while the queue is empty. 0: closed and drained.
  std::size_t pop(std::span<Job> batch, const Buckets& buckets, const BatchPolicy& policy);

  void close();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Job> ring_;
  std::size_t head_ = 0;
  std::size_t size_ = 0;
  bool closed_ = false;
};

}  // namespace trt_moe
