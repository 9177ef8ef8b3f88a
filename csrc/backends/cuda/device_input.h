#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>

#include "backends/cuda/stream_device.h"
#include "core/tensor_view.h"

namespace trt_moe::cuda {

// Brings images that are on a device to the host, for plans that route there. Thread-safe.
class DeviceInput {
 public:
  explicit DeviceInput(std::shared_ptr<StreamDevice> device);

  // A stream that others may make wait for their images; see DeviceImages::stream.
  std::uintptr_t stream() const noexcept { return stream_->handle(); }

  // Calls `use` with a copy of the images, which is good until it returns.
  void on_host(const DeviceImages& images, const std::function<void(ImageBatchView)>& use);

 private:
  std::shared_ptr<StreamDevice> device_;
  std::unique_ptr<Stream> stream_;
  std::mutex mutex_;
  std::unique_ptr<Stream> copies_;
  std::unique_ptr<Buffer> staging_;  // grows with the largest batch
};

}  // namespace trt_moe::cuda
