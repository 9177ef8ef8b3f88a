#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/backend.h"

namespace trt_moe {

// Names of the backends this build has, best first.
std::vector<std::string> built_backends();

// Throws Error(kDevice) when this build has no backend of that name.
std::shared_ptr<Backend> make_backend(const std::string& name);

}  // namespace trt_moe
