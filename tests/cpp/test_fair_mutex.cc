#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>
#include <vector>

#include "backends/cuda/fair_mutex.h"

using trt_moe::cuda::FairMutex;

TEST_CASE("a fair mutex lets one thread in at a time") {
  FairMutex mutex;
  int count = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        const std::lock_guard lock(mutex);
        ++count;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(count == 8000);
}

TEST_CASE("who lets a fair mutex go and locks it again comes after who waits") {
  int in_turn = 0;
  for (int i = 0; i < 5; ++i) {
    FairMutex mutex;
    std::atomic<bool> served{false};
    mutex.lock();
    std::thread waiting([&] {
      mutex.lock();
      served = true;
      mutex.unlock();
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    mutex.unlock();
    mutex.lock();
    if (served) ++in_turn;
    mutex.unlock();
    waiting.join();
  }
  // A thread may take longer than that to begin to wait, but not each time. Of a std::mutex it is 0.
  CHECK(in_turn > 0);
}
