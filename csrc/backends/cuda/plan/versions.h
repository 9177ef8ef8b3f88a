#pragma once

#include <string>

#include "backends/cuda/plan/graph_topology.h"

namespace trt_moe::cuda {

// 12060 -> "12.6", as CUDA writes its versions.
std::string version_text(int version);

// Throws Error(kDevice) that names both versions when there is no driver (0) or it is older than what this build's
// runtime needs: a driver of the same major version, or newer.
void check_versions(int driver, int runtime);

// What both the driver and the runtime know.
Conditionals conditionals_of(int driver, int runtime) noexcept;

}  // namespace trt_moe::cuda
