#include <doctest/doctest.h>

#include "core/histogram.h"

using trt_moe::Histogram;
using trt_moe::HistogramSnapshot;

TEST_CASE("bins are exact below 32 ns and within 3.2 % above") {
  for (std::uint64_t ns : {0ULL, 1ULL, 31ULL})
    CHECK(HistogramSnapshot::upper_edge(HistogramSnapshot::bin_of(ns)) == ns);
  for (std::uint64_t ns = 32; ns < 5'000'000'000ULL; ns = ns * 5 / 4) {
    const std::uint64_t edge = HistogramSnapshot::upper_edge(HistogramSnapshot::bin_of(ns));
    CHECK(edge >= ns);
    CHECK(static_cast<double>(edge) <= static_cast<double>(ns) * 1.032);
  }
}

TEST_CASE("quantiles, mean and extremes of known values") {
  Histogram histogram;
  for (std::uint64_t ns = 1; ns <= 100; ++ns) histogram.record(ns * 1000);
  const HistogramSnapshot snapshot = histogram.snapshot();
  CHECK(snapshot.count == 100);
  CHECK(snapshot.mean_ns() == doctest::Approx(50500));
  CHECK(snapshot.min_ns == 1000);
  CHECK(snapshot.max_ns == 100000);
  CHECK(snapshot.quantile_ns(0.5) == doctest::Approx(50000).epsilon(0.032));
  CHECK(snapshot.quantile_ns(0.99) == doctest::Approx(99000).epsilon(0.032));
  CHECK(snapshot.quantile_ns(1.0) == 100000);
}

TEST_CASE("an empty histogram answers zero") {
  CHECK(HistogramSnapshot{}.quantile_ns(0.5) == 0.0);
  CHECK(HistogramSnapshot{}.mean_ns() == 0.0);
}

TEST_CASE("merging adds counts and keeps extremes") {
  Histogram a;
  Histogram b;
  a.record(10);
  b.record(1'000'000);
  HistogramSnapshot sum = a.snapshot();
  sum.merge(b.snapshot());
  CHECK(sum.count == 2);
  CHECK(sum.min_ns == 10);
  CHECK(sum.max_ns == 1'000'000);
}

TEST_CASE("quantiles of few values, and of merged ones") {
  Histogram some;
  Histogram others;
  for (const std::uint64_t ns : {10, 20, 30}) some.record(ns);
  CHECK(some.snapshot().quantile_ns(0.5) == 20);
  for (int i = 0; i < 5; ++i) others.record(31);
  others.record(500);
  HistogramSnapshot sum = some.snapshot();
  sum.merge(others.snapshot());
  CHECK(sum.mean_ns() == doctest::Approx((60 + 155 + 500) / 9.0));
  CHECK(sum.quantile_ns(0.22) == 20);
  CHECK(sum.quantile_ns(0.75) == 31);
}

TEST_CASE("values past the last bin are counted in it") {
  Histogram histogram;
  histogram.record(~0ULL);
  CHECK(histogram.snapshot().count == 1);
}

TEST_CASE("how many took at most so long") {
  Histogram histogram;
  for (std::uint64_t ns = 1; ns <= 100; ++ns) histogram.record(ns * 1000);
  histogram.record(~0ULL);
  const HistogramSnapshot snapshot = histogram.snapshot();
  CHECK(snapshot.at_most(990) == 0);
  CHECK(snapshot.at_most(999) == 1);  // 1000 is in its bin
  CHECK(snapshot.at_most(1000) == 1);
  CHECK(snapshot.at_most(10'400) == 10);
  CHECK(snapshot.at_most(100'000) == 100);
  CHECK(snapshot.at_most(10'000'000'000) == 100);
  CHECK(snapshot.at_most(~0ULL) == snapshot.count);
  CHECK(HistogramSnapshot{}.at_most(~0ULL) == 0);
}
