#include <doctest/doctest.h>

#include <thread>
#include <vector>

#include "core/job_queue.h"

using namespace trt_moe;

namespace {

const Buckets kBuckets({1, 4});

Job job_of(Request& request, std::uint32_t index) { return {&request, index, Clock::now(), 0}; }

}  // namespace

TEST_CASE("jobs come out in the order they went in, past the end of the ring") {
  BlockingRequest request({nullptr, 8, 0}, {}, Clock::now());
  JobQueue queue(5);
  std::vector<Job> batch(4);
  std::vector<std::uint32_t> seen;
  std::uint32_t next = 0;
  for (int round = 0; round < 6; ++round) {
    REQUIRE(queue.push(4, [&](std::size_t) { return job_of(request, next++); }));
    REQUIRE(queue.pop(batch, kBuckets, {1, 64, {}}) == 4);
    for (const Job& job : batch) seen.push_back(job.index);
  }
  for (std::uint32_t i = 0; i < 24; ++i) CHECK(seen[i] == i);
}

TEST_CASE("a closed queue gives what it holds, then 0, and takes nothing") {
  BlockingRequest request({nullptr, 1, 0}, {}, Clock::now());
  JobQueue queue(4);
  std::vector<Job> batch(4);
  REQUIRE(queue.push(1, [&](std::size_t) { return job_of(request, 7); }));
  queue.close();
  CHECK_FALSE(queue.push(1, [&](std::size_t) { return job_of(request, 8); }));
  CHECK(queue.pop(batch, kBuckets, {1, 64, {}}) == 1);
  CHECK(batch[0].index == 7);
  CHECK(queue.pop(batch, kBuckets, {1, 64, {}}) == 0);
}

TEST_CASE("closing wakes a waiting worker") {
  JobQueue queue(4);
  std::vector<Job> batch(4);
  std::size_t got = 99;
  std::thread worker([&] { got = queue.pop(batch, kBuckets, {1, 64, {}}); });
  queue.close();
  worker.join();
  CHECK(got == 0);
}

TEST_CASE("with max_wait, a batch waits for company from another thread") {
  BlockingRequest request({nullptr, 4, 0}, {}, Clock::now());
  JobQueue queue(8);
  std::vector<Job> batch(4);
  REQUIRE(queue.push(1, [&](std::size_t) { return job_of(request, 0); }));
  std::size_t got = 0;
  // An hour: the test passes only because the fourth image ends the wait.
  std::thread worker([&] { got = queue.pop(batch, kBuckets, {2, 64, std::chrono::hours(1)}); });
  for (std::uint32_t i = 1; i < 4; ++i) REQUIRE(queue.push(1, [&](std::size_t) { return job_of(request, i); }));
  worker.join();
  CHECK(got == 4);
}

TEST_CASE("with max_wait, an image that waited long enough goes alone") {
  BlockingRequest request({nullptr, 1, 0}, {}, Clock::now() - std::chrono::seconds(10));
  JobQueue queue(8);
  std::vector<Job> batch(4);
  REQUIRE(queue.push(1, [&](std::size_t) { return job_of(request, 0); }));
  CHECK(queue.pop(batch, kBuckets, {1, 64, std::chrono::seconds(5)}) == 1);
}

TEST_CASE("without max_wait, two workers share what is there") {
  BlockingRequest request({nullptr, 8, 0}, {}, Clock::now());
  JobQueue queue(8);
  std::vector<Job> batch(4);
  REQUIRE(queue.push(6, [&](std::size_t i) { return job_of(request, static_cast<std::uint32_t>(i)); }));
  CHECK(queue.pop(batch, kBuckets, {2, 64, {}}) == 1);
  REQUIRE(queue.push(3, [&](std::size_t i) { return job_of(request, static_cast<std::uint32_t>(i)); }));
  CHECK(queue.pop(batch, kBuckets, {2, 64, {}}) == 4);
}
