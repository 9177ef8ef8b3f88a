#pragma once

#include <cstddef>

namespace trt_moe::cuda {

// Parts of a block start at multiples of this, which is what cudaMalloc aligns to.
inline constexpr std::size_t kAlignment = 256;

constexpr std::size_t aligned(std::size_t bytes) noexcept { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace trt_moe::cuda
