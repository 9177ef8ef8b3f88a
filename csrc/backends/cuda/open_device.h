#pragma once

#include <memory>
#include <string>

#include "backends/cuda/stream_device.h"

namespace trt_moe::cuda {

// Throws Error(kDevice) unless there is a GPU of that number, as CUDA counts them (CUDA_VISIBLE_DEVICES included), and
// says what was looked for: no driver, a driver too old for this build, no device, no such device. Leaves no context.
void expect_device(int ordinal);

// That GPU, or the same errors.
std::shared_ptr<StreamDevice> open_device(int ordinal);

// "CUDA 13.0 for sm_75, sm_90, compute_90 (PTX)": what this build was compiled with and for.
std::string build_text();

}  // namespace trt_moe::cuda
