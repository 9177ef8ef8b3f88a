#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "backends/cuda/graph_engine.h"
#include "backends/cuda/stream_device.h"
#include "core/tensor_view.h"

namespace trt_moe::cuda {

// Memory for answers that stay on the device. What nobody holds any more is used again, or freed where there is more of
// it than a few answers need. Thread-safe.
class DeviceOutputs {
 public:
  DeviceOutputs(std::shared_ptr<StreamDevice> device, std::size_t experts, std::size_t classes);

  // Rows for the answers to `images` images; they are the caller's for as long as it holds `memory`, which may outlive
  // this object. Throws Error(kDevice).
  struct Rows {
    DeviceRows rows;
    std::size_t images = 0;
    std::shared_ptr<void> memory;
  };
  Rows take(std::size_t images);
  MemoryUse memory_use() const;  // held by callers, and waiting to be used again

 private:
  class Pool;

  std::shared_ptr<Pool> pool_;
  std::size_t experts_;
  std::size_t classes_;
};

}  // namespace trt_moe::cuda
