#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace trt_moe {

struct ImageShape {
  std::size_t height = 0;
  std::size_t width = 0;
  std::size_t channels = 0;

  std::size_t bytes() const noexcept { return height * width * channels; }
  bool operator==(const ImageShape&) const = default;
};

// Borrowed uint8 NHWC images, densely packed; whoever makes the view keeps the memory alive.
struct ImageBatchView {
  const std::uint8_t* data = nullptr;
  std::size_t count = 0;
  std::size_t image_bytes = 0;

  const std::uint8_t* image(std::size_t index) const noexcept { return data + index * image_bytes; }
};

}  // namespace trt_moe
