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
  bool page_locked = false;  // a device may read them where they are

  const std::uint8_t* image(std::size_t index) const noexcept { return data + index * image_bytes; }
  ImageBatchView part(std::size_t begin, std::size_t images) const noexcept {
    return {image(begin), images, image_bytes, page_locked};
  }
};

// The same in a device's memory, whole once the work that is on `stream` now has run; 0: it is whole.
struct DeviceImages {
  std::uintptr_t address = 0;
  std::size_t count = 0;
  std::size_t image_bytes = 0;
  std::uintptr_t stream = 0;

  DeviceImages part(std::size_t begin, std::size_t images) const noexcept {
    return {address + begin * image_bytes, images, image_bytes, stream};
  }
};

// Where answers go in a device's memory, one row an image; borrowed.
struct DeviceRows {
  std::uintptr_t probabilities = 0;  // float32 [images, classes]
  std::uintptr_t gater_logits = 0;   // float32 [images, experts]
  std::uintptr_t routes = 0;         // int32 [images]

  DeviceRows part(std::size_t begin, std::size_t classes, std::size_t experts) const noexcept {
    return {probabilities + begin * classes * sizeof(float), gater_logits + begin * experts * sizeof(float),
            routes + begin * sizeof(std::int32_t)};
  }
};

}  // namespace trt_moe
