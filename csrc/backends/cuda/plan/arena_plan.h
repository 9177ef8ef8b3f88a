#pragma once

#include <cstddef>

namespace trt_moe::cuda {

// Where the images and logits of a captured model lie, in bytes from the start of its device memory. All its batch
// sizes share them: only one of its graphs runs at a time.
struct ArenaPlan {
  std::size_t input = 0;  // before it, room for the control values of a device-routed graph whose gater this is
  std::size_t output = 0;
  std::size_t bytes = 0;

  bool operator==(const ArenaPlan&) const = default;
};

// Pure. Every part starts at a multiple of 256 bytes.
ArenaPlan arena_plan(std::size_t largest_bucket, std::size_t image_bytes, std::size_t outputs);

}  // namespace trt_moe::cuda
