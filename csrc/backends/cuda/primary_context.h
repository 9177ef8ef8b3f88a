#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>

#include "backends/cuda/cuda_check.h"

namespace trt_moe::cuda {

// The primary context of one device, which this process's other users of CUDA's runtime share. Thread-safe.
class PrimaryContext {
 public:
  // Throws Error(kDevice).
  explicit PrimaryContext(int ordinal);
  PrimaryContext(const PrimaryContext&) = delete;
  PrimaryContext& operator=(const PrimaryContext&) = delete;

  int ordinal() const noexcept { return ordinal_; }
  bool usable() const noexcept { return usable_.load(std::memory_order_acquire); }
  // Whether the device memory there was made in another context, whose work nothing here can wait for.
  bool is_of_another(std::uintptr_t address) const noexcept;

 private:
  friend class ContextGuard;
  friend class ContextScope;

  // libcuda is opened, not linked: this module must import on a machine without a driver.
  struct Driver {
    decltype(&cuDeviceGet) get_device = nullptr;
    decltype(&cuDevicePrimaryCtxRetain) retain = nullptr;
    decltype(&cuCtxGetCurrent) get_current = nullptr;
    decltype(&cuCtxSetCurrent) set_current = nullptr;
    decltype(&cuPointerGetAttribute) ask_pointer = nullptr;
  };

  static Driver open_driver();
  [[noreturn]] void fail(cudaError_t status, const std::string& call);
  std::string lost() const;

  int ordinal_;
  Driver driver_;
  CUcontext handle_ = nullptr;
  std::atomic<bool> usable_{true};
  mutable std::mutex lost_mutex_;
  std::string lost_;  // the error after which the context was unusable
};

// Makes the context the calling thread's for as long as it lives. What was current before (another device's
// context, or one that pycuda made) then is again; a thread that had none keeps this one.
class ContextGuard {
 public:
  explicit ContextGuard(PrimaryContext& context) noexcept;
  ~ContextGuard();
  ContextGuard(const ContextGuard&) = delete;
  ContextGuard& operator=(const ContextGuard&) = delete;

  cudaError_t status() const noexcept { return status_; }

 private:
  PrimaryContext& context_;
  CUcontext before_ = nullptr;
  cudaError_t status_ = cudaSuccess;
};

// Lets the calling thread load kernels, allocate, free, instantiate and wait while others capture: in torch's mode of
// capture, a call of these on any thread may end the capture.
class BesideCaptures {
 public:
  BesideCaptures() noexcept { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~BesideCaptures() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  BesideCaptures(const BesideCaptures&) = delete;
  BesideCaptures& operator=(const BesideCaptures&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;  // then the thread's own, to be set again
};

// A ContextGuard for work that may fail: every call on the device is made and checked in one.
class ContextScope {
 public:
  // Throws Error(kDevice) on a context that an earlier error left unusable, with that error.
  explicit ContextScope(PrimaryContext& context);

  // Throws Error(kDevice) unless `status` is cudaSuccess.
  void check(cudaError_t status, const char* call) const {
    if (status != cudaSuccess) context_.fail(status, call);
  }

 private:
  PrimaryContext& context_;
  ContextGuard guard_;
};

}  // namespace trt_moe::cuda
