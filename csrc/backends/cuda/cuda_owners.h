#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <utility>

#include "backends/cuda/primary_context.h"

namespace trt_moe::cuda {

// The one owner of something that CUDA made; `destroy` gives it back.
template <typename Handle, auto destroy>
class Owner {
 public:
  explicit Owner(std::shared_ptr<PrimaryContext> context) noexcept : context_(std::move(context)) {}
  Owner(Owner&& other) noexcept : context_(other.context_), handle_(std::exchange(other.handle_, Handle{})) {}
  Owner& operator=(Owner&&) = delete;
  ~Owner() {
    if (handle_ == Handle{}) return;
    const ContextGuard guard(*context_);
    const BesideCaptures beside;
    // It fails after a sticky error and while the process ends, when there is nothing left to give back.
    if (destroy(handle_) != cudaSuccess) cudaGetLastError();
  }

  Handle get() const noexcept { return handle_; }
  Handle* out() noexcept { return &handle_; }  // for the call that makes it, once
  PrimaryContext& context() const noexcept { return *context_; }
  const std::shared_ptr<PrimaryContext>& shared_context() const noexcept { return context_; }

 private:
  std::shared_ptr<PrimaryContext> context_;
  Handle handle_{};
};

using StreamOwner = Owner<cudaStream_t, cudaStreamDestroy>;
using EventOwner = Owner<cudaEvent_t, cudaEventDestroy>;
using GraphOwner = Owner<cudaGraph_t, cudaGraphDestroy>;
using GraphExecOwner = Owner<cudaGraphExec_t, cudaGraphExecDestroy>;
using DeviceMemory = Owner<void*, cudaFree>;
using HostMemory = Owner<void*, cudaFreeHost>;

}  // namespace trt_moe::cuda
