#pragma once

#include <exception>
#include <stdexcept>
#include <string>

namespace trt_moe {

// Each kind is raised in Python as the exception of the same name in trt_moe/errors.py; a lost device, which
// this process cannot use any more, as DeviceError.
enum class ErrorKind { kInput, kQueueFull, kDeadline, kRouterClosed, kDevice, kDeviceLost, kEngineBuild, kModelOutput };

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const noexcept { return kind_; }

 private:
  ErrorKind kind_;
};

// An error as a plain value: unlike an exception_ptr it can cross threads with nothing shared.
struct Failure {
  ErrorKind kind = ErrorKind::kDevice;
  std::string message;
};

// What is being thrown; only valid inside a catch block. Anything but an Error counts as a failed device.
inline Failure current_failure() {
  try {
    throw;
  } catch (const Error& error) {
    return {error.kind(), error.what()};
  } catch (const std::exception& error) {
    return {ErrorKind::kDevice, error.what()};
  } catch (...) {
    return {ErrorKind::kDevice, "the device failed without saying why"};
  }
}

}  // namespace trt_moe
