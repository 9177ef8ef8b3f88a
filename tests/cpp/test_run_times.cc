#include <doctest/doctest.h>

#include <chrono>

#include "core/run_times.h"

using std::chrono::hours;
using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::nanoseconds;
using trt_moe::Buckets;
using trt_moe::Clock;
using trt_moe::RunTime;
using trt_moe::RunTimes;

namespace {

double us(nanoseconds time) { return std::chrono::duration<double, std::micro>(time).count(); }

const Clock::time_point kStart = Clock::time_point(hours(1));

}  // namespace

TEST_CASE("nothing is expected of runs that were never made") {
  RunTime time;
  CHECK(time.expected() == nanoseconds(0));
  CHECK(time.mean() == nanoseconds(0));
  time.ease(kStart);
  CHECK(time.expected() == nanoseconds(0));
}

TEST_CASE("a run is expected to take the mean and four deviations") {
  RunTime time;
  time.record(microseconds(100), kStart);
  CHECK(us(time.mean()) == doctest::Approx(100));
  CHECK(us(time.expected()) == doctest::Approx(100));
  time.record(microseconds(180), kStart);
  CHECK(us(time.mean()) == doctest::Approx(110));
  CHECK(us(time.expected()) == doctest::Approx(110 + 4 * 20));
  for (int i = 0; i < 200; ++i) time.record(microseconds(300), kStart);
  CHECK(us(time.mean()) == doctest::Approx(300).epsilon(0.01));
  CHECK(us(time.expected()) == doctest::Approx(300).epsilon(0.01));
}

TEST_CASE("one run that was held up counts for twice what was expected, and some in a row tell how it is") {
  RunTime time;
  for (int i = 0; i < 2; ++i) time.record(microseconds(100), kStart);
  time.record(hours(1), kStart);
  CHECK(us(time.mean()) == doctest::Approx(112.5));
  CHECK(us(time.expected()) == doctest::Approx(112.5 + 4 * 25));
  for (int i = 0; i < 20; ++i) time.record(microseconds(100), kStart);
  CHECK(us(time.expected()) < 110);
  for (int i = 0; i < 6; ++i) time.record(milliseconds(5), kStart);
  CHECK(time.expected() > milliseconds(5));
}

TEST_CASE("runs that are not made for their estimate bring it to the fastest of the last ones, within a second") {
  RunTime time;
  time.record(microseconds(100), kStart);
  time.record(microseconds(200), kStart);
  CHECK(us(time.expected()) == doctest::Approx(112.5 + 4 * 25));
  time.ease(kStart + milliseconds(1));
  CHECK(us(time.expected()) == doctest::Approx(112.5 + 100 * 0.99667).epsilon(1e-3));
  // However long ago the last one was, a quarter of a second of it counts.
  time.ease(kStart + hours(1));
  CHECK(us(time.expected()) == doctest::Approx(110.9 + 100 * 0.99667 * 0.4346).epsilon(1e-3));
  for (int i = 0; i < 40; ++i) time.ease(kStart + hours(2) + milliseconds(60) * i);
  CHECK(us(time.expected()) < 110);
  CHECK(us(time.expected()) > 65);
  const double eased = us(time.mean());
  time.record(microseconds(100), kStart + hours(3));
  CHECK(us(time.mean()) == doctest::Approx(eased + (100 - eased) / 8).epsilon(0.01));
}

TEST_CASE("in the end a run is tried again whatever the last ones took, and its time counts from then on") {
  RunTime time;
  time.record(milliseconds(200), kStart);
  Clock::time_point now = kStart;
  const auto seconds_until = [&](nanoseconds left) {
    const Clock::time_point begin = now;
    while (time.expected() > left) time.ease(now += milliseconds(100));
    return std::chrono::duration<double>(now - begin).count();
  };
  const double first = seconds_until(milliseconds(100));
  CHECK(first > 5);
  CHECK(first < 15);
  // It takes what it took: not soon again.
  time.record(milliseconds(200), now);
  CHECK(time.expected() > milliseconds(100));
  CHECK(seconds_until(milliseconds(100)) > 5);
  // It has become faster: once is enough to know.
  time.record(milliseconds(30), now);
  CHECK(time.expected() < milliseconds(400));
  CHECK(seconds_until(milliseconds(50)) < 5);
}

TEST_CASE("every batch size has times of its own, and all tell what an image takes") {
  RunTimes times(Buckets({1, 4}));
  times.record(4, microseconds(800), kStart);
  CHECK(us(times.expected(4)) == doctest::Approx(800));
  CHECK(us(times.mean(3)) == doctest::Approx(800));
  CHECK(times.expected(1) == nanoseconds(0));
  CHECK(us(times.per_image()) == doctest::Approx(200));
  times.record(1, microseconds(360), kStart);
  CHECK(us(times.expected(1)) == doctest::Approx(360));
  CHECK(us(times.expected(2)) == doctest::Approx(800));
  CHECK(us(times.per_image()) == doctest::Approx(220));
  times.record(1, microseconds(720), kStart);
  const nanoseconds before = times.expected(4);
  times.ease(1, kStart + milliseconds(100));
  CHECK(us(times.expected(1)) < 405 + 4 * 90);
  CHECK(times.expected(4) == before);
}
