#include "backends/cuda/plan/versions.h"

#include <algorithm>

#include "core/error.h"

namespace trt_moe::cuda {

namespace {
constexpr int kMajor = 1000;
constexpr int kFirstIf = 12040;
constexpr int kFirstSwitch = 12080;
}  // namespace

std::string version_text(int version) {
  return std::to_string(version / kMajor) + "." + std::to_string(version % kMajor / 10);
}

void check_versions(int driver, int runtime) {
  const std::string needed = "this build of trt-moe needs a driver for CUDA " + std::to_string(runtime / kMajor) +
                             ".0 or newer (it was built with CUDA " + version_text(runtime) + ")";
  if (driver == 0)
    throw Error(ErrorKind::kDevice, "no NVIDIA driver was found (libcuda.so.1 cannot be loaded); " + needed);
  if (driver / kMajor < runtime / kMajor) {
    throw Error(ErrorKind::kDevice, "the NVIDIA driver supports CUDA " + version_text(driver) + ", but " + needed +
                                        "; update the driver, or build trt-moe with CUDA " +
                                        std::to_string(driver / kMajor));
  }
}

Conditionals conditionals_of(int driver, int runtime) noexcept {
  const int both = std::min(driver, runtime);
  if (both >= kFirstSwitch) return Conditionals::kSwitch;
  return both >= kFirstIf ? Conditionals::kIf : Conditionals::kNone;
}

}  // namespace trt_moe::cuda
