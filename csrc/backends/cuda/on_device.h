#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "backends/cuda/stream_device.h"
#include "core/error.h"

namespace trt_moe::cuda {

// Runs `work`; its errors then begin with `who`. One that leaves the device unusable becomes Error(kDeviceLost), which
// says what to do.
template <typename Work>
decltype(auto) on_device(const StreamDevice& device, std::string_view who, Work&& work) {
  try {
    return std::forward<Work>(work)();
  } catch (const Error& error) {
    const std::string what = std::string(who) + ": " + error.what();
    if (device.usable()) throw Error(error.kind(), what);
    throw Error(ErrorKind::kDeviceLost,
                what + "; this process cannot use " + device.info().name + " any more: restart the process");
  }
}

// Lets `work` enqueue on the stream. After an error, nothing of it is left to run on into memory that somebody else
// uses by then.
template <typename Work>
void enqueue_on(const StreamDevice& device, std::string_view who, Stream& stream, Work&& work) {
  on_device(device, who, [&] {
    try {
      std::forward<Work>(work)();
    } catch (const Error&) {
      try {
        stream.synchronize();
      } catch (const Error&) {
        // The first error says more.
      }
      throw;
    }
  });
}

}  // namespace trt_moe::cuda
