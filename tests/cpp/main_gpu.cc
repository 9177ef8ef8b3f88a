// Runs the tests that need a GPU, or says why it cannot. CTest takes "skipped:" for a skipped test.
#include <doctest/doctest.h>

#include <cstdio>

#include "core/error.h"
#include "toy_models.h"

int main(int argc, char** argv) {
  try {
    const auto& info = trt_moe::testing::the_gpu()->info();
    std::printf("%s, compute capability %d.%d\n", info.name.c_str(), info.compute_major, info.compute_minor);
  } catch (const trt_moe::Error& error) {
    std::printf("skipped: %s\n", error.what());
    return 0;
  }
  return doctest::Context(argc, argv).run();
}
