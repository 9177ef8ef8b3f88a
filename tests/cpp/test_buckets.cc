#include <doctest/doctest.h>

#include "core/buckets.h"
#include "core/error.h"

using trt_moe::Batching;
using trt_moe::Buckets;
using trt_moe::next_chunk;

TEST_CASE("a bucket is the largest that the images fill") {
  const Buckets buckets({1, 4, 16});
  CHECK(buckets.filled_by(1) == 1);
  CHECK(buckets.filled_by(3) == 1);
  CHECK(buckets.filled_by(4) == 4);
  CHECK(buckets.filled_by(15) == 4);
  CHECK(buckets.filled_by(16) == 16);
  CHECK(buckets.filled_by(1000) == 16);
  CHECK(buckets.largest() == 16);
}

TEST_CASE("a padded batch takes all that the largest bucket holds, in the smallest bucket that holds it") {
  const Buckets buckets({1, 4, 16}, Batching::kPadded);
  for (const std::size_t images : {1U, 3U, 4U, 15U, 16U}) CHECK(buckets.filled_by(images) == images);
  CHECK(buckets.filled_by(17) == 16);
  CHECK(buckets.holding(1) == 0);
  CHECK(buckets.holding(2) == 1);
  CHECK(buckets.holding(4) == 1);
  CHECK(buckets.holding(5) == 2);
  CHECK(buckets.holding(16) == 2);
  CHECK(next_chunk(7, 1, 5, buckets) == 5);
  CHECK(next_chunk(40, 2, 64, buckets) == 16);
}

TEST_CASE("buckets start with 1 and ascend") {
  CHECK_THROWS_WITH_AS(Buckets({2, 4}), doctest::Contains("[2,4]"), trt_moe::Error);
  CHECK_THROWS_AS(Buckets({1, 4, 4}), trt_moe::Error);
  CHECK_THROWS_AS(Buckets({}), trt_moe::Error);
}

TEST_CASE("a worker takes its fair share, so that the others do not idle") {
  const Buckets buckets({1, 4, 16});
  CHECK(next_chunk(32, 2, 64, buckets) == 16);
  CHECK(next_chunk(16, 2, 64, buckets) == 4);
  CHECK(next_chunk(8, 2, 64, buckets) == 4);
  CHECK(next_chunk(3, 2, 64, buckets) == 1);
  CHECK(next_chunk(16, 1, 64, buckets) == 16);
}

TEST_CASE("max_batch caps a chunk") { CHECK(next_chunk(64, 1, 8, Buckets({1, 4, 16})) == 4); }
