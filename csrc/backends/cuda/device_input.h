#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "backends/cuda/graph_engine.h"
#include "backends/cuda/stream_device.h"
#include "core/tensor_view.h"

namespace trt_moe::cuda {

// Brings images that are on a device to the host, for plans that route there. Thread-safe; calls run side by side.
class DeviceInput {
 public:
  // capacity: most images that are brought at a time.
  DeviceInput(std::shared_ptr<StreamDevice> device, std::size_t image_bytes, std::size_t capacity);

  // A stream that others may make wait for their images; see DeviceImages::stream.
  std::uintptr_t stream() const noexcept { return stream_->handle(); }
  std::size_t capacity() const noexcept { return capacity_; }
  MemoryUse memory_use() const noexcept { return {0, pinned_.load()}; }

  // Throws Error(kInput) on images that are in no memory of the device.
  void expect_on_device(const DeviceImages& images) const;

  // A copy of some images, at most `capacity` of them, for as long as it lives.
  class OnHost;

 private:
  struct Staging {
    std::unique_ptr<Stream> stream;
    std::unique_ptr<Buffer> buffer;
  };

  std::shared_ptr<StreamDevice> device_;
  std::size_t image_bytes_;
  std::size_t capacity_;
  std::unique_ptr<Stream> stream_;
  std::atomic<std::size_t> pinned_{0};
  std::mutex mutex_;
  std::vector<Staging> idle_;  // as many as were in use at a time
};

class DeviceInput::OnHost {
 public:
  // Waits for what is on the images' stream now, and for the copy.
  OnHost(DeviceInput& input, const DeviceImages& images);
  ~OnHost();
  OnHost(const OnHost&) = delete;
  OnHost& operator=(const OnHost&) = delete;

  const ImageBatchView& view() const noexcept { return view_; }

 private:
  explicit OnHost(DeviceInput& input);

  DeviceInput& input_;
  Staging staging_;
  ImageBatchView view_;
};

}  // namespace trt_moe::cuda
