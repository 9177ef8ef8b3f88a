#pragma once

#include <array>
#include <cstddef>

#include "backends/cuda/kernels.h"
#include "backends/cuda/plan/gater_arguments.h"

namespace trt_moe::cuda {

// How a kernel is launched, with the arguments that it takes by value.
struct BoundKernel {
  KernelLaunch launch;
  const void* arguments = nullptr;
};

struct GaterKernels {
  std::array<BoundKernel, 3> kernels;
  std::size_t count = 0;
};

// What runs a gater, one after the other; it points into `run`.
GaterKernels gater_kernels(const GaterRun& run);

// Every kernel there is, as all_kernels().
std::array<const void*, 4> all_gater_kernels();

}  // namespace trt_moe::cuda
