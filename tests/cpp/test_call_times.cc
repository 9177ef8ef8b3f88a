#include <doctest/doctest.h>

#include "core/call_times.h"

using namespace trt_moe;
using namespace std::chrono_literals;

TEST_CASE("images have their share of the time, beside those that come later") {
  const Clock::time_point begin{};
  const CallTimes all(begin, begin + 100ms);
  CHECK(all.share(10, begin + 20ms) == begin + 100ms);
  CHECK(all.before(30).share(10, begin + 20ms) == begin + 40ms);
  CHECK(all.before(30).share(40, begin) == begin + 57142840ns);
  CHECK(all.before(20).before(10).share(10, begin + 20ms) == begin + 40ms);
  CHECK(all.before(30).share(10, begin + 140ms) == begin + 130ms);  // over
  CHECK(CallTimes(begin).before(30).share(10, begin) == Clock::time_point::max());
}

TEST_CASE("times without a limit have no deadline") {
  CHECK_FALSE(CallTimes::within(kNoLimit).has_deadline());
  const CallTimes due = CallTimes::within(5ms);
  CHECK(due.has_deadline());
  CHECK(due.deadline - due.submitted == 5ms);
}
