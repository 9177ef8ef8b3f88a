#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "core/buckets.h"
#include "core/request.h"

namespace trt_moe {

// One image on its way through the models.
struct Job {
  Request* request = nullptr;
  std::uint32_t index = 0;    // the image within its request
  Clock::time_point entered;  // when it entered the first line; a large request hands in its images bit by bit
  Clock::time_point queued;   // when it entered the line it is in
  bool verifies = false;      // an expert was unsure, and has left its probabilities in the request's rows
  bool patient = false;       // may wait for company: nobody is blocked by it
  std::int64_t work_ns = 0;   // what it adds to the work of the crew that it waits for
  // In earlier lines, and with an expert that was unsure:
  std::uint64_t waited_ns = 0;
  std::uint64_t gather_ns = 0;
  std::uint64_t expert_ns = 0;
  std::uint64_t scatter_ns = 0;
};

// How the jobs of one line are batched.
struct BatchPolicy {
  Buckets buckets{{1}};
  std::size_t sharers = 1;  // batches that run well side by side
  std::size_t max_batch = 64;
  std::chrono::microseconds max_wait{0};  // of patient jobs for a fuller batch, from the image's submission
};

// What waits for one set of workers: a line for each model that they run, the gater's first. A line is first in, first
// out, with room for `capacity` jobs set aside at construction; the caller keeps within it.
class JobQueue {
 public:
  struct Batch {
    std::size_t line = 0;
    std::size_t jobs = 0;
  };

  JobQueue(std::size_t capacity, const std::vector<BatchPolicy>& lines);

  // Adds make(0) .. make(jobs - 1), or nothing: false when the queue is closed.
  template <typename MakeJob>
  bool push(std::size_t line, std::size_t jobs, MakeJob&& make) {
    return add(line, jobs, make, false);
  }

  // The same by a worker for a job that it holds: a closed queue still takes it.
  template <typename MakeJob>
  void pass_on(std::size_t line, std::size_t jobs, MakeJob&& make) {
    add(line, jobs, make, true);
  }

  // Moves the next batch into `batch`; blocks while nothing waits, or all that waits does so for company. The batch
  // comes from the line whose first job entered earliest, of equals from the first line; but see more_comes. No jobs:
  // closed and drained.
  Batch pop(std::span<Job> batch);

  void close();

 private:
  struct Line {
    BatchPolicy policy;
    std::vector<Job> ring;
    std::size_t head = 0;
    std::size_t size = 0;
    std::size_t impatient = 0;    // of them
    std::size_t passed_over = 0;  // how often, since a batch was taken

    const Job& first() const { return ring[head]; }
    std::size_t full_batch() const { return std::min(policy.buckets.largest(), policy.max_batch); }
    bool full() const { return size >= full_batch(); }
  };

  template <typename MakeJob>
  bool add(std::size_t line, std::size_t jobs, MakeJob&& make, bool even_if_closed) {
    {
      const std::lock_guard lock(mutex_);
      if (closed_ && !even_if_closed) return false;
      Line& into = lines_[line];
      for (std::size_t i = 0; i < jobs; ++i) {
        Job& job = into.ring[(into.head + into.size + i) % into.ring.size()];
        job = make(i);
        if (!job.patient) ++into.impatient;
        if (job.request->times().has_deadline()) ++due_;
      }
      into.size += jobs;
    }
    if (jobs == 1) {
      changed_.notify_one();
    } else {
      changed_.notify_all();
    }
    return true;
  }

  Line* first_ready(std::optional<Clock::time_point>& next_deadline);
  // An expert's line while the gater has a full batch, and images enough to fill one of the expert's and to keep all
  // workers busy. Batches need not be shared out then, and one that is not full lets the gater go first, though not for
  // ever. Not while any job is due.
  bool more_comes(const Line& line) const;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Line> lines_;
  std::size_t due_ = 0;  // jobs with a deadline, of all lines
  bool closed_ = false;
};

}  // namespace trt_moe
