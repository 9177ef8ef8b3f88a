#pragma once

#include <cstdint>

#include "core/tensor_view.h"

namespace trt_moe {

// Copies one image of 1, 3 or 4 channels mirrored left to right; `to` has room for it and does not overlap it.
void copy_mirrored(const std::uint8_t* image, const ImageShape& shape, std::uint8_t* to) noexcept;

}  // namespace trt_moe
