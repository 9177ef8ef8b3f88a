#pragma once

#include <stdexcept>
#include <string>

namespace trt_moe {

// Each kind is raised in Python as the exception of the same name in trt_moe/errors.py.
enum class ErrorKind { kInput, kQueueFull, kRouterClosed, kDevice, kEngineBuild, kModelOutput };

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const noexcept { return kind_; }

 private:
  ErrorKind kind_;
};

}  // namespace trt_moe
