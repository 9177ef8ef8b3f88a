#pragma once

#include <cstddef>
#include <cstdint>

#include "backends/cuda/kernels.h"

namespace trt_moe::testing {

// Enqueues what gater_model and expert_model of fake_backend.h compute: images uint8 [images, image_bytes] and
// logits float32 [images, outputs] are on the device, stream is a handle of CUDA's.
void enqueue_toy_model(std::uintptr_t stream, std::uintptr_t images, std::uintptr_t logits, std::size_t count,
                       std::size_t image_bytes, std::size_t outputs, double scale);

// Enqueues `microseconds` of waiting, then a write of `value`.
void enqueue_slow_write(std::uintptr_t stream, std::uintptr_t target, float value, unsigned microseconds);

// Enqueues a kernel of the backend by itself, which is a node of a graph otherwise. arguments: what it takes by value.
void enqueue_kernel(std::uintptr_t stream, const cuda::KernelLaunch& launch, const void* arguments);

// Enqueues a write to where no memory is. The context is lost afterwards.
void enqueue_illegal_write(std::uintptr_t stream);

}  // namespace trt_moe::testing
