#pragma once

// What the scheduler's own files share; nobody else includes it.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/run_times.h"
#include "core/scheduler.h"

namespace trt_moe {

// Models are numbered: the gater, then expert k as k + 1.
inline constexpr std::size_t kGater = 0;

inline std::uint64_t ns_between(Clock::time_point from, Clock::time_point to) {
  return static_cast<std::uint64_t>(std::max<std::int64_t>(0, std::chrono::nanoseconds(to - from).count()));
}

inline float ms_between(Clock::time_point from, Clock::time_point to) {
  return static_cast<float>(ns_between(from, to)) * 1e-6F;
}

inline bool all_finite(std::span<const float> values) {
  return std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); });
}

// Returns the largest probability.
inline float softmax(std::span<const float> logits, float* probabilities) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  float sum = 0.0F;
  for (std::size_t i = 0; i < logits.size(); ++i) sum += probabilities[i] = std::exp(logits[i] - largest);
  for (std::size_t i = 0; i < logits.size(); ++i) probabilities[i] /= sum;
  return 1.0F / sum;
}

// The same where an unsure expert's probabilities are there already: leaves the mean of both answers.
inline float softmax_mean(std::span<const float> logits, float* probabilities) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  float sum = 0.0F;
  for (const float logit : logits) sum += std::exp(logit - largest);
  for (std::size_t i = 0; i < logits.size(); ++i) {
    probabilities[i] = (probabilities[i] + std::exp(logits[i] - largest) / sum) / 2.0F;
  }
  return *std::max_element(probabilities, probabilities + logits.size());
}

inline bool has_deadline(const Job& job) { return job.request->times().has_deadline(); }
inline bool any_deadline(std::span<const Job> jobs) { return std::any_of(jobs.begin(), jobs.end(), has_deadline); }

inline Failure closed_failure() {
  return {ErrorKind::kRouterClosed, "the router is closed; open a new one with trt_moe.Router(bundle)"};
}

inline Error error_of(const Failure& failure) { return {failure.kind, failure.message}; }

// For a counter that one thread writes at a time and any thread reads.
inline void add_one(std::uint64_t& counter) { std::atomic_ref(counter).fetch_add(1, std::memory_order_relaxed); }
inline void add_one(std::atomic<std::uint64_t>& counter) {
  counter.store(counter.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

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
  std::vector<std::chrono::nanoseconds> takes;  // for one image on its way, of each expert
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
  // Of the images that wait for its experts, or are with them.
  std::atomic<std::int64_t> work_ns{0};
  std::atomic<std::int64_t> images{0};
};

// The caller's own thread: one latency session a model, used by one caller at a time.
struct Scheduler::InlineLane {
  std::mutex mutex;
  std::unique_ptr<Session> gater;
  std::vector<std::unique_ptr<Session>> experts;
  std::deque<RunTimes> run_times;               // of each expert
  std::vector<std::chrono::nanoseconds> takes;  // for the image at hand, of each expert
  OverlappingSession* speculative = nullptr;    // the cheapest expert's session, where it starts beside the gater
  std::vector<std::uint64_t> images;
  std::vector<std::uint64_t> passed_on;
  StageRecorder stats;
};

// A plan that answers whole batches on the device, for one caller at a time.
struct Scheduler::RoutedLane {
  std::mutex mutex;
  std::shared_ptr<RoutedPlan> plan;
  std::vector<std::vector<std::uint32_t>> unsure;  // of the run, indices of images by the expert that verifies them
  std::vector<bool> ran;                           // in the run, by expert
  // Of whole runs, by the dearest expert that ran: with images from the host, and with those on the device, where a run
  // also waits for whoever makes them.
  std::deque<RunTimes> run_times;
  std::deque<RunTimes> run_times_there;
  std::vector<float> costs;  // with the latency weight in them, for a run with a deadline
  std::vector<std::uint64_t> images;
  std::vector<std::uint64_t> passed_on;
  std::vector<std::uint64_t> batches;
  StageRecorder stats;
};

template <typename MakeJob>
bool Scheduler::push(std::size_t model, std::size_t jobs, MakeJob&& make) {
  return line_of_[model].crew->queue.push(line_of_[model].line, jobs, make);
}

template <typename MakeJob>
void Scheduler::pass_on(std::size_t model, std::size_t jobs, MakeJob&& make) {
  line_of_[model].crew->queue.pass_on(line_of_[model].line, jobs, make);
}

}  // namespace trt_moe
