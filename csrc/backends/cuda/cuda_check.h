#pragma once

#include <cuda_runtime_api.h>

#include <string>

#if CUDART_VERSION < 12040
#error "trt-moe needs CUDA 12.4 or newer; configure with -DTRT_MOE_CUDA=OFF to build it for the CPU only"
#endif

// Throws Error(kDevice) unless the call succeeds. scope: the ContextScope that it runs in.
#define TRT_MOE_CUDA_CHECK(scope, ...) (scope).check((__VA_ARGS__), #__VA_ARGS__)

namespace trt_moe::cuda {

// The device's context is lost: whatever this process asks of it from now on fails with this error.
bool is_sticky(cudaError_t status) noexcept;

// "cudaMalloc failed with cudaErrorMemoryAllocation (out of memory); <what to do>".
// call: the function, or the whole expression that calls it.
std::string error_text(cudaError_t status, const std::string& call);

}  // namespace trt_moe::cuda
