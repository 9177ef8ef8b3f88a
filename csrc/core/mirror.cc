#include "core/mirror.h"

#include <algorithm>

namespace trt_moe {

void copy_mirrored(const std::uint8_t* image, const ImageShape& shape, std::uint8_t* to) noexcept {
  const std::size_t pixel = shape.channels;
  const std::size_t row = shape.width * pixel;
  for (std::size_t y = 0; y < shape.height; ++y, image += row) {
    for (const std::uint8_t* from = image + row; from != image; to += pixel) {
      from -= pixel;
      std::copy_n(from, pixel, to);
    }
  }
}

}  // namespace trt_moe
