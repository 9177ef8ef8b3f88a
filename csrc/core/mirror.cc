#include "core/mirror.h"

#include <cstddef>

namespace trt_moe {

namespace {

// With the size of a pixel known, its copy is a move or two.
template <std::size_t kChannels>
void mirror_rows(const std::uint8_t* image, const ImageShape& shape, std::uint8_t* to) noexcept {
  const std::size_t row = shape.width * kChannels;
  for (std::size_t y = 0; y < shape.height; ++y, image += row) {
    for (const std::uint8_t* from = image + row; from != image; to += kChannels) {
      from -= kChannels;
      for (std::size_t c = 0; c < kChannels; ++c) to[c] = from[c];
    }
  }
}

}  // namespace

void copy_mirrored(const std::uint8_t* image, const ImageShape& shape, std::uint8_t* to) noexcept {
  switch (shape.channels) {
    case 1: return mirror_rows<1>(image, shape, to);
    case 3: return mirror_rows<3>(image, shape, to);
    default: return mirror_rows<4>(image, shape, to);
  }
}

}  // namespace trt_moe
