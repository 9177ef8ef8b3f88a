#pragma once

#include <cstddef>
#include <cstdint>

namespace trt_moe::cuda {

inline constexpr int kGaterWidth = 16;       // channels of its first convolution
inline constexpr int kMaxGaterChannels = 4;  // of an image

// A block of a kernel computes tiles of so many outputs of a 3 x 3 convolution, rows and columns.
inline constexpr int kStemTile = 4;
inline constexpr int kMiddleTile = 4;
inline constexpr int kHeadTile = 2;

constexpr std::size_t tiles_of(std::size_t side, std::size_t tile) { return (side + tile - 1) / tile; }

// One Fire block's weights, one behind the other; inputs before outputs, so that threads of neighbouring channels read
// neighbours.
struct FireWeights {
  const float* squeeze = nullptr;       // [inputs, squeezed]
  const float* squeeze_bias = nullptr;  // [squeezed]
  const float* expand = nullptr;        // [3, 3, squeezed, outputs]
  const float* expand_bias = nullptr;   // [outputs]
};

// What the kernels take by value. All addresses are the device's.

struct GaterStemArguments {
  const std::uint8_t* images = nullptr;  // [n, height, width, channels]
  float* out = nullptr;                  // [n, out_rows, out_columns, kGaterWidth]
  const float* scale = nullptr;          // [channels]
  const float* bias = nullptr;           // [channels]
  const float* convolution = nullptr;    // [3, 3, channels, kGaterWidth]
  const float* convolution_bias = nullptr;
  FireWeights fire;
  int height = 0;
  int width = 0;
  int channels = 0;
  int rows = 0;  // after the resize
  int columns = 0;
  float down = 0;  // how many rows of the image are one of these
  float right = 0;
  int out_rows = 0;  // a quarter of them
  int out_columns = 0;
};

struct GaterMiddleArguments {
  const float* in = nullptr;  // [n, rows, columns, kGaterWidth]
  float* out = nullptr;       // [n, rows / 2, columns / 2, 2 * kGaterWidth]
  FireWeights fire;
  int rows = 0;
  int columns = 0;
};

struct GaterHeadArguments {
  const float* in = nullptr;          // [n, rows, columns, inputs]
  float* sums = nullptr;              // [n, tiles, outputs]
  std::uint32_t* finished = nullptr;  // [n], zero before and after
  float* logits = nullptr;            // [n, experts]
  FireWeights fire;
  const float* head = nullptr;  // [experts, outputs]
  const float* head_bias = nullptr;
  int rows = 0;
  int columns = 0;
  int experts = 0;
};

struct GaterRun {
  GaterStemArguments stem;
  GaterMiddleArguments middle;  // only with a third Fire block
  GaterHeadArguments head;
  bool third = false;
  int images = 0;
};

}  // namespace trt_moe::cuda
