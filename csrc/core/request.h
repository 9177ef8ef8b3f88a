#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include "core/call_times.h"
#include "core/error.h"
#include "core/tensor_view.h"

namespace trt_moe {

// Where the answers of a request go, one row an image; borrowed.
struct OutputRows {
  float* probabilities = nullptr;  // [images * classes]
  float* gater_logits = nullptr;   // [images * experts]
  std::int64_t* routes = nullptr;  // [images]
  float* latency_ms = nullptr;     // [images], from `submitted` to done

  OutputRows part(std::size_t begin, std::size_t classes, std::size_t experts) const noexcept {
    return {probabilities + begin * classes, gater_logits + begin * experts, routes + begin, latency_ms + begin};
  }
};

// Images that are answered together. Workers complete each image exactly once, with an answer or an error;
// after the last one they never touch the request again.
class Request {
 public:
  Request(ImageBatchView images, OutputRows rows, const CallTimes& times);
  virtual ~Request() = default;
  Request(const Request&) = delete;
  Request& operator=(const Request&) = delete;

  const ImageBatchView& images() const noexcept { return images_; }
  const OutputRows& rows() const noexcept { return rows_; }
  const CallTimes& times() const noexcept { return times_; }
  Clock::time_point submitted() const noexcept { return times_.submitted; }
  std::size_t remaining() const noexcept { return remaining_.load(std::memory_order_relaxed); }
  bool cancelled() const noexcept { return cancelled_.load(std::memory_order_relaxed); }

  // Images not yet started are completed without running. False: that was so already.
  bool cancel() noexcept { return !cancelled_.exchange(true, std::memory_order_relaxed); }
  void complete_one();
  void fail_one(Failure failure);  // the first error wins

 protected:
  virtual void finish() = 0;  // runs once, on the thread that completes the last image
  std::optional<Failure> failure() const;
  void reset(ImageBatchView images, OutputRows rows, const CallTimes& times);

 private:
  ImageBatchView images_;
  OutputRows rows_;
  CallTimes times_;
  std::atomic<std::size_t> remaining_;
  std::atomic<bool> cancelled_{false};
  mutable std::mutex failure_mutex_;
  std::optional<Failure> failure_;
};

// A request whose caller waits for it.
class BlockingRequest final : public Request {
 public:
  using Request::Request;

  // Returns when every image is answered; throws the first error. `poll` (may be null) is called every
  // kPollEvery; when it throws, the request is cancelled, waited for and the exception passed on.
  void wait(void (*poll)());
  // Cancels and waits; what became of the images does not matter any more.
  void abandon();

 private:
  void finish() override;
  bool wait_for(std::chrono::milliseconds time);

  std::mutex mutex_;
  std::condition_variable done_changed_;
  bool done_ = false;
};

class CompletionQueue;

// One image that is answered through a CompletionQueue. Owns its image and its answer, and is reused.
class SubmittedRequest final : public Request {
 public:
  SubmittedRequest(std::size_t image_bytes, std::size_t classes, std::size_t experts);

  void start(std::uint64_t ticket, const std::uint8_t* image, const CallTimes& times, CompletionQueue& completed);

  std::uint64_t ticket() const noexcept { return ticket_; }
  const std::vector<float>& probabilities() const noexcept { return probabilities_; }
  const std::vector<float>& gater_logits() const noexcept { return gater_logits_; }
  std::int64_t route() const noexcept { return route_; }
  float latency_ms() const noexcept { return latency_ms_; }
  using Request::failure;

 private:
  void finish() override;

  std::vector<std::uint8_t> image_;
  std::vector<float> probabilities_;
  std::vector<float> gater_logits_;
  std::int64_t route_ = -1;
  float latency_ms_ = 0.0F;
  std::uint64_t ticket_ = 0;
  CompletionQueue* completed_ = nullptr;
};

// Finished submissions, waiting for the one thread that hands them to their futures.
class CompletionQueue {
 public:
  void push(SubmittedRequest* request);
  // Blocks until something is finished or the queue is closed; `into` left empty means closed and drained.
  void take(std::vector<SubmittedRequest*>& into);
  void close();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<SubmittedRequest*> finished_;
  bool closed_ = false;
};

}  // namespace trt_moe
