#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>

#include "core/on_threads.h"

using trt_moe::on_threads;

TEST_CASE("each number has a thread of its own, the first the caller's") {
  std::mutex mutex;
  std::set<std::size_t> numbers;
  std::set<std::thread::id> threads;
  std::thread::id first;
  on_threads(4, [&](std::size_t i) {
    const std::lock_guard lock(mutex);
    numbers.insert(i);
    threads.insert(std::this_thread::get_id());
    if (i == 0) first = std::this_thread::get_id();
  });
  CHECK(numbers == std::set<std::size_t>{0, 1, 2, 3});
  CHECK(threads.size() == 4);
  CHECK(first == std::this_thread::get_id());
}

TEST_CASE("an exception of any thread is the caller's, once all have ended") {
  for (const std::size_t failing : {0U, 2U}) {
    std::atomic<int> ended{0};
    const auto work = [&](std::size_t i) {
      if (i == failing) throw std::runtime_error("one failed");
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      ++ended;
    };
    CHECK_THROWS_WITH(on_threads(3, work), "one failed");
    CHECK(ended == 2);
  }
}
