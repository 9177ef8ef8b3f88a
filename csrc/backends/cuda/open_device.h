#pragma once

#include <memory>
#include <string>

#include "backends/cuda/stream_device.h"

namespace trt_moe::cuda {

// The GPU of that number, as CUDA counts them (CUDA_VISIBLE_DEVICES included). Throws Error(kDevice) that says what was
// looked for: no driver, a driver too old for this build, no device, no such device.
std::shared_ptr<StreamDevice> open_device(int ordinal);

// Its compute capability, such as "9.0", or the same errors; leaves no context on it.
std::string compute_capability(int ordinal);

// "CUDA 13.0 for sm_75, sm_90, compute_90 (PTX)": what this build was compiled with and for.
std::string build_text();

}  // namespace trt_moe::cuda
