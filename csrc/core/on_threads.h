#pragma once

#include <cstddef>
#include <exception>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "core/error.h"

namespace trt_moe {

inline Error thread_refused(const std::system_error& error) {
  return {ErrorKind::kDevice, std::string("the system refused another thread: ") + error.what()};
}

// Runs work(i) for each i below `threads` on as many threads, work(0) on the caller's. Once all have ended, the first
// exception of any is thrown.
template <typename Work>
void on_threads(std::size_t threads, Work work) {
  std::exception_ptr error;
  std::mutex mutex;
  const auto guarded = [&](std::size_t which) {
    try {
      work(which);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> helpers;
    try {
      for (std::size_t i = 1; i < threads; ++i) helpers.emplace_back(guarded, i);
    } catch (const std::system_error& refused) {
      throw thread_refused(refused);
    }
    guarded(0);
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace trt_moe
