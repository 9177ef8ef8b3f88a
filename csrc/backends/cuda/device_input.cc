#include "backends/cuda/device_input.h"

#include <utility>

#include "backends/cuda/on_device.h"

namespace trt_moe::cuda {

namespace {
constexpr const char* kName = "images on the device";
}

DeviceInput::DeviceInput(std::shared_ptr<StreamDevice> device) : device_(std::move(device)) {
  on_device(*device_, kName, [&] {
    stream_ = device_->open_stream();
    copies_ = device_->open_stream();
  });
}

void DeviceInput::on_host(const DeviceImages& images, const std::function<void(ImageBatchView)>& use) {
  const std::size_t bytes = images.count * images.image_bytes;
  const std::lock_guard lock(mutex_);
  if (!staging_ || staging_->size() < bytes) {
    staging_ = on_device(*device_, kName, [&] { return device_->allocate(MemoryKind::kPinned, bytes); });
  }
  enqueue_on(*device_, kName, *copies_, [&] {
    if (images.stream != 0) copies_->wait_for(images.stream);
    copies_->copy(reinterpret_cast<std::uintptr_t>(staging_->host()), images.address, bytes);
  });
  on_device(*device_, kName, [&] { copies_->synchronize(); });
  use({reinterpret_cast<const std::uint8_t*>(staging_->host()), images.count, images.image_bytes});
}

}  // namespace trt_moe::cuda
