#include "backends/cuda/device_input.h"

#include <string>
#include <utility>

#include "backends/cuda/on_device.h"
#include "core/error.h"

namespace trt_moe::cuda {

namespace {
constexpr const char* kImagesOnDevice = "images on the device";
}

DeviceInput::DeviceInput(std::shared_ptr<StreamDevice> device, std::size_t image_bytes, std::size_t capacity)
    : device_(std::move(device)),
      image_bytes_(image_bytes),
      capacity_(capacity),
      stream_(on_device(*device_, kImagesOnDevice, [&] { return device_->open_stream(); })) {}

void DeviceInput::expect_on_device(const DeviceImages& images) const {
  if (on_device(*device_, kImagesOnDevice, [&] { return device_->holds(images.address); })) return;
  throw Error(ErrorKind::kInput,
              "the images are at address " + std::to_string(images.address) + ", which is in no memory of " +
                  device_->info().name +
                  ", the router's device, of the primary context; expected images that lie there: with "
                  "pycuda, import pycuda.autoprimaryctx instead of pycuda.autoinit; else move them, "
                  "to the CPU if nothing else");
}

DeviceInput::OnHost::OnHost(DeviceInput& input) : input_(input) {
  {
    const std::lock_guard lock(input_.mutex_);
    if (!input_.idle_.empty()) {
      staging_ = std::move(input_.idle_.back());
      input_.idle_.pop_back();
      return;
    }
  }
  StreamDevice& device = *input_.device_;
  staging_.stream = on_device(device, kImagesOnDevice, [&] { return device.open_stream(); });
  staging_.buffer = allocate_for(device, kImagesOnDevice, MemoryKind::kPinned, input_.capacity_ * input_.image_bytes_);
  input_.pinned_ += staging_.buffer->size();
}

DeviceInput::OnHost::OnHost(DeviceInput& input, const DeviceImages& images) : OnHost(input) {
  const std::byte* const host = staging_.buffer->host();
  enqueue_on(*input_.device_, kImagesOnDevice, *staging_.stream, [&] {
    if (images.stream != 0) staging_.stream->wait_for(images.stream);
    staging_.stream->copy(reinterpret_cast<std::uintptr_t>(host), images.address, images.count * images.image_bytes);
  });
  on_device(*input_.device_, kImagesOnDevice, [&] { staging_.stream->synchronize(); });
  view_ = {reinterpret_cast<const std::uint8_t*>(host), images.count, images.image_bytes, true};
}

DeviceInput::OnHost::~OnHost() {
  const std::lock_guard lock(input_.mutex_);
  input_.idle_.push_back(std::move(staging_));
}

}  // namespace trt_moe::cuda
