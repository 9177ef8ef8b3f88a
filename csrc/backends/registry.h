#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/backend.h"

namespace trt_moe {

namespace cuda {
class StreamDevice;
}

// Names of the backends this build has, best first.
std::vector<std::string> built_backends();

// Throws Error(kDevice) when this build has no backend of that name.
std::shared_ptr<Backend> make_backend(const std::string& name);

// Toolkit and GPU architectures of this build's CUDA backend, for people; "" when it has none.
std::string cuda_build();

// Throws Error(kDevice) when this build has no CUDA backend, or finds no such device.
std::shared_ptr<cuda::StreamDevice> open_cuda_device(int ordinal);

// Its compute capability, such as "9.0", or the same errors; takes nothing of the device.
std::string cuda_compute_capability(int ordinal);

}  // namespace trt_moe
