#include "core/forks.h"

#include <pthread.h>

#include <atomic>

#include "core/error.h"

namespace trt_moe {

namespace {

std::atomic<unsigned> forks{0};

// Set up when the code is loaded: a fork before that has nothing to know.
[[maybe_unused]] const int registered =
    pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); });

}  // namespace

ForkMark::ForkMark() noexcept : forks_(forks.load(std::memory_order_relaxed)) {}

bool ForkMark::forked() const noexcept { return forks_ != forks.load(std::memory_order_relaxed); }

void ForkMark::expect_not_forked() const {
  if (!forked()) return;
  throw Error(
      ErrorKind::kDevice,
      "this process is a fork of one that made a router, and has none of its threads; expected processes with a "
      "router of their own, started by multiprocessing's 'spawn' method, or forked before the first router");
}

}  // namespace trt_moe
