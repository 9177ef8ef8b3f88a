#pragma once

#include <cstddef>
#include <cstdint>

#include "backends/cuda/plan/gater_arguments.h"
#include "core/tensor_view.h"

namespace trt_moe::cuda {

// The gater (SqueezeNetLight of trt_moe/models/gater.py, batch norms folded) as three kernels of our own. A lone image
// costs a GPU its number of kernels, not its arithmetic: this is all float32 on plain cores.

struct GaterNet {
  ImageShape images;     // as the caller has them
  std::size_t rows = 0;  // what they are resized to
  std::size_t columns = 0;
  bool third = false;  // whether it has a third Fire block
  std::size_t experts = 0;
};

// Throws Error(kInput) where the kernels have no room for such images, or for so many.
void check_gater(const GaterNet& net, std::size_t most_images);
// How many floats its weights are: every layer's weights and bias in their order, laid out as above, then scale and
// bias.
std::size_t gater_weights(const GaterNet& net);
// Bytes that weights and what lies between the kernels take together.
std::size_t gater_bytes(const GaterNet& net, std::size_t most_images);
// How many of them must be written before the first run: the weights, and zeros behind them.
std::size_t gater_bytes_to_write(const GaterNet& net, std::size_t most_images);
// The kernels' arguments. block: gater_bytes on the device.
GaterRun gater_run(const GaterNet& net, std::size_t most_images, std::uintptr_t block, std::uintptr_t images,
                   std::uintptr_t logits, std::size_t count);

}  // namespace trt_moe::cuda
