#pragma once

#include <memory>

#include "core/backend.h"

namespace trt_moe {

// Runs engines on the CPU through OpenVINO. One runtime is shared by the whole process.
std::shared_ptr<Backend> make_openvino_backend();

}  // namespace trt_moe
