#include "core/request.h"

#include <cstring>
#include <exception>
#include <utility>

#include "core/poller.h"

namespace trt_moe {

Request::Request(ImageBatchView images, OutputRows rows, const CallTimes& times)
    : images_(images), rows_(rows), times_(times), remaining_(images.count) {}

void Request::reset(ImageBatchView images, OutputRows rows, const CallTimes& times) {
  images_ = images;
  rows_ = rows;
  times_ = times;
  remaining_.store(images.count, std::memory_order_relaxed);
  cancelled_.store(false, std::memory_order_relaxed);
  const std::lock_guard lock(failure_mutex_);
  failure_.reset();
}

void Request::complete_one() {
  if (remaining_.fetch_sub(1, std::memory_order_acq_rel) == 1) finish();
}

void Request::fail_one(Failure failure) {
  {
    const std::lock_guard lock(failure_mutex_);
    if (!failure_) failure_ = std::move(failure);
  }
  complete_one();
}

std::optional<Failure> Request::failure() const {
  const std::lock_guard lock(failure_mutex_);
  return failure_;
}

void BlockingRequest::finish() {
  // Notifying under the lock keeps the waiter from destroying the condition variable under our feet.
  const std::lock_guard lock(mutex_);
  done_ = true;
  done_changed_.notify_all();
}

bool BlockingRequest::wait_for(std::chrono::milliseconds time) {
  std::unique_lock lock(mutex_);
  return done_changed_.wait_for(lock, time, [this] { return done_; });
}

void BlockingRequest::wait(void (*poll)()) {
  std::exception_ptr interrupted;
  while (!wait_for(kPollEvery)) {
    if (poll == nullptr || interrupted) continue;
    try {
      poll();
    } catch (...) {
      interrupted = std::current_exception();
      cancel();
    }
  }
  if (interrupted) std::rethrow_exception(interrupted);
  if (const std::optional<Failure> first = failure()) throw Error(first->kind, first->message);
}

void BlockingRequest::abandon() {
  cancel();
  while (!wait_for(std::chrono::hours(1))) {
  }
}

SubmittedRequest::SubmittedRequest(std::size_t image_bytes, std::size_t classes, std::size_t experts)
    : Request({}, {}, Clock::time_point{}), image_(image_bytes), probabilities_(classes), gater_logits_(experts) {}

void SubmittedRequest::start(std::uint64_t ticket, const std::uint8_t* image, const CallTimes& times,
                             CompletionQueue& completed) {
  ticket_ = ticket;
  completed_ = &completed;
  std::memcpy(image_.data(), image, image_.size());
  reset({image_.data(), 1, image_.size()}, {probabilities_.data(), gater_logits_.data(), &route_, &latency_ms_}, times);
}

void SubmittedRequest::finish() { completed_->push(this); }

void CompletionQueue::push(SubmittedRequest* request) {
  const std::lock_guard lock(mutex_);
  finished_.push_back(request);
  changed_.notify_one();
}

void CompletionQueue::take(std::vector<SubmittedRequest*>& into) {
  into.clear();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !finished_.empty() || closed_; });
  std::swap(into, finished_);
}

void CompletionQueue::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  changed_.notify_all();
}

}  // namespace trt_moe
