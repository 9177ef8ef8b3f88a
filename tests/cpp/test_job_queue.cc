#include <doctest/doctest.h>

#include <atomic>
#include <thread>
#include <utility>
#include <vector>

#include "core/job_queue.h"

using namespace trt_moe;

namespace {

BatchPolicy policy(std::size_t sharers, std::chrono::microseconds max_wait = {}) {
  return {Buckets({1, 4}), sharers, 64, max_wait};
}

Job job_of(Request& request, std::uint32_t index) {
  const Clock::time_point submitted = request.submitted();
  return {.request = &request, .index = index, .entered = submitted, .queued = Clock::now(), .patient = true};
}

}  // namespace

TEST_CASE("jobs come out in the order they went in, past the end of the ring") {
  BlockingRequest request({nullptr, 8, 0}, {}, Clock::now());
  JobQueue queue(5, {policy(1)});
  std::vector<Job> batch(4);
  std::vector<std::uint32_t> seen;
  std::uint32_t next = 0;
  for (int round = 0; round < 6; ++round) {
    REQUIRE(queue.push(0, 4, [&](std::size_t) { return job_of(request, next++); }));
    REQUIRE(queue.pop(batch).jobs == 4);
    for (const Job& job : batch) seen.push_back(job.index);
  }
  for (std::uint32_t i = 0; i < 24; ++i) CHECK(seen[i] == i);
}

TEST_CASE("a closed queue gives what it holds, then 0, and takes nothing") {
  BlockingRequest request({nullptr, 1, 0}, {}, Clock::now());
  JobQueue queue(4, {policy(1)});
  std::vector<Job> batch(4);
  REQUIRE(queue.push(0, 1, [&](std::size_t) { return job_of(request, 7); }));
  queue.close();
  CHECK_FALSE(queue.push(0, 1, [&](std::size_t) { return job_of(request, 8); }));
  CHECK(queue.pop(batch).jobs == 1);
  CHECK(batch[0].index == 7);
  CHECK(queue.pop(batch).jobs == 0);
}

TEST_CASE("closing wakes a waiting worker") {
  JobQueue queue(4, {policy(1)});
  std::vector<Job> batch(4);
  std::size_t got = 99;
  std::thread worker([&] { got = queue.pop(batch).jobs; });
  queue.close();
  worker.join();
  CHECK(got == 0);
}

TEST_CASE("with max_wait, a batch waits for company from another thread") {
  BlockingRequest request({nullptr, 4, 0}, {}, Clock::now());
  JobQueue queue(8, {policy(2, std::chrono::hours(1))});
  std::vector<Job> batch(4);
  REQUIRE(queue.push(0, 1, [&](std::size_t) { return job_of(request, 0); }));
  std::size_t got = 0;
  // An hour: the test passes only because the fourth image ends the wait.
  std::thread worker([&] { got = queue.pop(batch).jobs; });
  for (std::uint32_t i = 1; i < 4; ++i) REQUIRE(queue.push(0, 1, [&](std::size_t) { return job_of(request, i); }));
  worker.join();
  CHECK(got == 4);
}

TEST_CASE("with max_wait, an image that waited long enough goes alone") {
  BlockingRequest request({nullptr, 1, 0}, {}, Clock::now() - std::chrono::seconds(10));
  JobQueue queue(8, {policy(1, std::chrono::seconds(5))});
  std::vector<Job> batch(4);
  REQUIRE(queue.push(0, 1, [&](std::size_t) { return job_of(request, 0); }));
  CHECK(queue.pop(batch).jobs == 1);
}

TEST_CASE("with max_wait, an image whose caller is blocked waits for nobody, and takes along who waits") {
  BlockingRequest request({nullptr, 3, 0}, {}, Clock::now());
  JobQueue queue(8, {policy(1, std::chrono::hours(1))});
  std::vector<Job> batch(4);
  const auto blocked = [&](std::size_t) {
    Job job = job_of(request, 1);
    job.patient = false;
    return job;
  };
  REQUIRE(queue.push(0, 1, [&](std::size_t) { return job_of(request, 0); }));
  REQUIRE(queue.push(0, 1, blocked));
  CHECK(queue.pop(batch).jobs == 1);  // two fill no bucket of four
  CHECK(batch[0].index == 0);
  CHECK(queue.pop(batch).jobs == 1);
  CHECK(batch[0].index == 1);
  // When it is gone, others wait again.
  REQUIRE(queue.push(0, 1, [&](std::size_t) { return job_of(request, 2); }));
  std::atomic<bool> taken{false};
  std::thread worker([&] {
    queue.pop(batch);
    taken = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  CHECK_FALSE(taken);
  queue.close();
  worker.join();
}

TEST_CASE("with max_wait, a line that holds max_batch waits for no more company") {
  BlockingRequest request({nullptr, 2, 0}, {}, Clock::now());
  JobQueue queue(8, {{Buckets({1, 2, 16}), 1, 2, std::chrono::hours(1)}});
  std::vector<Job> batch(16);
  REQUIRE(queue.push(0, 2, [&](std::size_t i) { return job_of(request, static_cast<std::uint32_t>(i)); }));
  CHECK(queue.pop(batch).jobs == 2);
}

TEST_CASE("closing ends the wait for company") {
  BlockingRequest request({nullptr, 1, 0}, {}, Clock::now());
  JobQueue queue(8, {policy(1, std::chrono::hours(1))});
  std::vector<Job> batch(4);
  REQUIRE(queue.push(0, 1, [&](std::size_t) { return job_of(request, 0); }));
  std::size_t got = 0;
  std::thread worker([&] { got = queue.pop(batch).jobs; });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  queue.close();
  worker.join();
  CHECK(got == 1);
}

TEST_CASE("a worker wakes for the line that is due first") {
  const Clock::time_point now = Clock::now();
  BlockingRequest soon({nullptr, 1, 0}, {}, now - std::chrono::hours(1) + std::chrono::milliseconds(100));
  BlockingRequest late({nullptr, 1, 0}, {}, now);
  for (const std::size_t line : {0U, 1U}) {
    JobQueue queue(8, {policy(1, std::chrono::hours(1)), policy(1, std::chrono::hours(1))});
    REQUIRE(queue.push(line, 1, [&](std::size_t) { return job_of(soon, 0); }));
    REQUIRE(queue.push(1 - line, 1, [&](std::size_t) { return job_of(late, 0); }));
    std::vector<Job> batch(4);
    CHECK(queue.pop(batch).line == line);
  }
}

TEST_CASE("without max_wait, two workers share what is there") {
  BlockingRequest request({nullptr, 8, 0}, {}, Clock::now());
  JobQueue queue(8, {policy(2)});
  std::vector<Job> batch(4);
  REQUIRE(queue.push(0, 6, [&](std::size_t i) { return job_of(request, static_cast<std::uint32_t>(i)); }));
  CHECK(queue.pop(batch).jobs == 1);
  REQUIRE(queue.push(0, 3, [&](std::size_t i) { return job_of(request, static_cast<std::uint32_t>(i)); }));
  CHECK(queue.pop(batch).jobs == 4);
}

TEST_CASE("the line of the oldest image goes first, of equals the first line") {
  const Clock::time_point now = Clock::now();
  BlockingRequest old({nullptr, 2, 0}, {}, now - std::chrono::seconds(1));
  BlockingRequest young({nullptr, 2, 0}, {}, now);
  JobQueue queue(4, {policy(1), policy(1), policy(1)});
  std::vector<Job> batch(4);
  const auto push = [&](std::size_t line, Request& request) {
    REQUIRE(queue.push(line, 1, [&](std::size_t) { return job_of(request, 0); }));
  };
  push(0, young);
  push(1, young);
  push(2, old);
  std::vector<std::size_t> order;
  for (int i = 0; i < 3; ++i) order.push_back(queue.pop(batch).line);
  CHECK(order == std::vector<std::size_t>{2, 0, 1});
}

TEST_CASE("a late part of an old request waits for younger images that entered before it") {
  const Clock::time_point now = Clock::now();
  BlockingRequest bulk({nullptr, 9, 0}, {}, now - std::chrono::seconds(9));
  BlockingRequest lone({nullptr, 1, 0}, {}, now - std::chrono::seconds(2));
  JobQueue queue(4, {policy(1), policy(1)});
  std::vector<Job> batch(4);
  REQUIRE(queue.push(0, 1, [&](std::size_t) { return Job{&bulk, 8, now - std::chrono::seconds(1), now}; }));
  REQUIRE(queue.push(1, 1, [&](std::size_t) { return Job{&lone, 0, now - std::chrono::seconds(2), now}; }));
  CHECK(queue.pop(batch).line == 1);
  CHECK(queue.pop(batch).line == 0);
}

TEST_CASE("a worker that sleeps until one line is due wakes for another") {
  BlockingRequest young({nullptr, 1, 0}, {}, Clock::now());
  BlockingRequest overdue({nullptr, 2, 0}, {}, Clock::now() - std::chrono::hours(2));
  JobQueue queue(4, {policy(1, std::chrono::hours(1)), policy(1, std::chrono::hours(1))});
  REQUIRE(queue.push(0, 1, [&](std::size_t) { return job_of(young, 0); }));
  std::vector<std::size_t> lines(2, 99);
  std::vector<std::thread> workers;
  for (std::size_t worker = 0; worker < 2; ++worker) {
    workers.emplace_back([&, worker] {
      std::vector<Job> batch(4);
      lines[worker] = queue.pop(batch).line;
    });
  }
  // Asleep or not yet, each must find one.
  for (std::uint32_t i = 0; i < 2; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    REQUIRE(queue.push(1, 1, [&](std::size_t) { return job_of(overdue, i); }));
  }
  for (std::thread& worker : workers) worker.join();
  CHECK(lines == std::vector<std::size_t>{1, 1});
}

TEST_CASE("what one worker leaves when its wait is over, another one takes") {
  BlockingRequest request({nullptr, 2, 0}, {}, Clock::now());
  JobQueue queue(4, {policy(1, std::chrono::milliseconds(200))});
  std::vector<std::size_t> jobs(2);
  std::vector<std::thread> workers;
  for (std::size_t worker = 0; worker < 2; ++worker) {
    workers.emplace_back([&, worker] {
      std::vector<Job> batch(4);
      jobs[worker] = queue.pop(batch).jobs;
    });
  }
  // Two images fill no bucket of four, and go one by one.
  for (std::uint32_t i = 0; i < 2; ++i) REQUIRE(queue.push(0, 1, [&](std::size_t) { return job_of(request, i); }));
  for (std::thread& worker : workers) worker.join();
  CHECK(jobs == std::vector<std::size_t>{1, 1});
}

TEST_CASE("a line that waits for company holds up no other") {
  BlockingRequest old({nullptr, 1, 0}, {}, Clock::now() - std::chrono::seconds(1));
  BlockingRequest young({nullptr, 4, 0}, {}, Clock::now());
  JobQueue queue(4, {policy(1, std::chrono::hours(1)), policy(1, std::chrono::hours(1))});
  std::vector<Job> batch(4);
  REQUIRE(queue.push(0, 1, [&](std::size_t) { return job_of(old, 0); }));
  REQUIRE(queue.push(1, 4, [&](std::size_t i) { return job_of(young, static_cast<std::uint32_t>(i)); }));
  const JobQueue::Batch taken = queue.pop(batch);
  CHECK(taken.line == 1);
  CHECK(taken.jobs == 4);
}

TEST_CASE("what a worker passes on is taken by a closed queue too") {
  BlockingRequest request({nullptr, 2, 0}, {}, Clock::now());
  JobQueue queue(4, {policy(1), policy(1)});
  std::vector<Job> batch(4);
  REQUIRE(queue.push(0, 1, [&](std::size_t) { return job_of(request, 0); }));
  queue.close();
  REQUIRE(queue.pop(batch).line == 0);
  queue.pass_on(1, 1, [&](std::size_t) { return job_of(request, 1); });
  const JobQueue::Batch taken = queue.pop(batch);
  CHECK(taken.line == 1);
  CHECK(taken.jobs == 1);
  CHECK(batch[0].index == 1);
  CHECK(queue.pop(batch).jobs == 0);
}

namespace {

// An old image waits for an expert's worker, and younger ones for the gater. Batches are of four.
struct Backlog {
  explicit Backlog(std::size_t waiting, Clock::time_point due = Clock::time_point::max(), std::size_t at_expert = 1)
      : old({nullptr, 9, 0}, {}, CallTimes(now - std::chrono::seconds(9), due)) {
    push(kExpert, old, at_expert);
    push(kGater, young, waiting);
  }

  void push(std::size_t line, Request& request, std::size_t jobs) {
    REQUIRE(queue.push(line, jobs, [&](std::size_t i) { return job_of(request, static_cast<std::uint32_t>(i)); }));
  }
  // Line and jobs of each batch that comes out, until nothing waits.
  std::vector<std::pair<std::size_t, std::size_t>> drain() {
    std::vector<std::pair<std::size_t, std::size_t>> taken;
    queue.close();
    for (auto next = queue.pop(batch); next.jobs > 0; next = queue.pop(batch)) taken.emplace_back(next.line, next.jobs);
    return taken;
  }

  static constexpr std::size_t kGater = 0;
  static constexpr std::size_t kExpert = 1;
  const Clock::time_point now = Clock::now();
  BlockingRequest old;
  BlockingRequest young{{nullptr, 99, 0}, {}, now};
  JobQueue queue{64, {policy(1), policy(2), policy(2)}};
  std::vector<Job> batch = std::vector<Job>(4);
};

using Taken = std::vector<std::pair<std::size_t, std::size_t>>;

}  // namespace

TEST_CASE("an expert's batch that is not full lets full ones of the gater go first, twice") {
  CHECK(Backlog(16).drain() == Taken{{0, 4}, {0, 4}, {1, 1}, {0, 4}, {0, 4}});
}

TEST_CASE("it goes first where too few wait for the gater to keep all workers busy, or to fill its batch") {
  const auto first = [](BatchPolicy gater, BatchPolicy expert, std::size_t waiting) {
    const Clock::time_point now = Clock::now();
    BlockingRequest old({nullptr, 1, 0}, {}, now - std::chrono::seconds(9));
    BlockingRequest young({nullptr, 99, 0}, {}, now);
    JobQueue queue(64, {gater, expert});
    const auto push = [&](std::size_t line, Request& request, std::size_t jobs) {
      REQUIRE(queue.push(line, jobs, [&](std::size_t i) { return job_of(request, static_cast<std::uint32_t>(i)); }));
    };
    push(1, old, 1);
    push(0, young, waiting);
    std::vector<Job> batch(4);
    return queue.pop(batch).line;
  };
  const BatchPolicy one_by_one{Buckets({1}), 2};
  const BatchPolicy by_twos{Buckets({1, 2}), 2};
  CHECK(first(one_by_one, policy(1), 3) == 1);
  CHECK(first(one_by_one, policy(1), 4) == 0);
  CHECK(first(by_twos, by_twos, 3) == 1);
  CHECK(first(by_twos, by_twos, 4) == 0);
  CHECK(first(one_by_one, one_by_one, 9) == 1);  // its batch is full
  const BatchPolicy at_most_two{Buckets({1, 4}), 1, 2};
  CHECK(first(one_by_one, at_most_two, 2) == 0);
}

TEST_CASE("each time that an expert's batch was taken it may be passed over again") {
  Backlog backlog(16);
  CHECK(backlog.queue.pop(backlog.batch).line == 0);
  CHECK(backlog.queue.pop(backlog.batch).line == 0);
  CHECK(backlog.queue.pop(backlog.batch).line == 1);
  backlog.push(1, backlog.old, 1);
  CHECK(backlog.drain() == Taken{{0, 4}, {0, 4}, {1, 1}});
}

TEST_CASE("it goes where the gater's would not be full either, or its images are due") {
  CHECK(Backlog(3).drain() == Taken{{1, 1}, {0, 1}, {0, 1}, {0, 1}});
  CHECK(Backlog(5).drain() == Taken{{0, 4}, {1, 1}, {0, 1}});
  CHECK(Backlog(8, Clock::now() + std::chrono::hours(1)).drain() == Taken{{1, 1}, {0, 4}, {0, 4}});
  // Once that one is taken, nothing is due.
  Backlog backlog(16, Clock::now() + std::chrono::hours(1));
  CHECK(backlog.queue.pop(backlog.batch).line == 1);
  backlog.push(1, backlog.young, 1);
  CHECK(backlog.queue.pop(backlog.batch).line == 0);
}

TEST_CASE("no line is passed over while an image that is due waits in any") {
  Backlog backlog(16);
  BlockingRequest due({nullptr, 1, 0}, {}, CallTimes(backlog.now - std::chrono::seconds(1), Clock::time_point()));
  backlog.push(2, due, 1);
  CHECK(backlog.drain() == Taken{{1, 1}, {2, 1}, {0, 4}, {0, 4}, {0, 4}, {0, 4}});
}

TEST_CASE("while a full batch waits for the gater, an expert's is not shared") {
  const Clock::time_point later = Clock::now() + std::chrono::hours(1);
  CHECK(Backlog(4, Clock::time_point::max(), 5).drain() == Taken{{1, 4}, {0, 4}, {1, 1}});
  CHECK(Backlog(3, Clock::time_point::max(), 5).drain() ==
        Taken{{1, 1}, {1, 1}, {1, 1}, {1, 1}, {1, 1}, {0, 1}, {0, 1}, {0, 1}});
  CHECK(Backlog(4, later, 5).drain() == Taken{{1, 1}, {1, 1}, {1, 1}, {1, 1}, {1, 1}, {0, 4}});
}
