#include "backends/cuda/open_device.h"

#include <cstdlib>
#include <sstream>
#include <string>

#include "backends/cuda/cuda_check.h"
#include "backends/cuda/cuda_device.h"
#include "backends/cuda/plan/versions.h"
#include "core/error.h"

namespace trt_moe::cuda {

namespace {

constexpr const char* kHelp = ". `trt-moe doctor` shows what this machine has; device=\"cpu\" needs no GPU";

std::string visible() {
  const char* const value = std::getenv("CUDA_VISIBLE_DEVICES");
  return value == nullptr ? "" : std::string(" (CUDA_VISIBLE_DEVICES is '") + value + "')";
}

Error refused(const std::string& why) { return {ErrorKind::kDevice, why + kHelp}; }

int count_devices() {
  int driver = 0;
  cudaDriverGetVersion(&driver);  // 0 where libcuda cannot be loaded
  try {
    check_versions(driver, CUDART_VERSION);
  } catch (const Error& error) {
    throw refused(error.what());
  }
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count > 0) return count;
  cudaGetLastError();
  if (status == cudaSuccess || status == cudaErrorNoDevice) {
    throw refused("the NVIDIA driver (for CUDA " + version_text(driver) + ") shows this process no GPU" + visible() +
                  "; in a container, start it with --gpus all");
  }
  throw refused("the NVIDIA driver (for CUDA " + version_text(driver) +
                ") does not start: " + error_text(status, "cudaGetDeviceCount"));
}

void expect_device(int ordinal) {
  const int count = count_devices();
  if (ordinal < 0 || ordinal >= count) {
    throw refused("there is no GPU " + std::to_string(ordinal) + ": the driver shows " + std::to_string(count) +
                  (count == 1 ? ", number 0" : ", numbers 0 to " + std::to_string(count - 1)) + visible());
  }
}

}  // namespace

std::string compute_capability(int ordinal) {
  expect_device(ordinal);
  const auto ask = [&](cudaDeviceAttr part) {
    int value = 0;
    if (const cudaError_t status = cudaDeviceGetAttribute(&value, part, ordinal); status != cudaSuccess) {
      cudaGetLastError();
      throw refused(error_text(status, "cudaDeviceGetAttribute"));
    }
    return std::to_string(value);
  };
  return ask(cudaDevAttrComputeCapabilityMajor) + "." + ask(cudaDevAttrComputeCapabilityMinor);
}

std::shared_ptr<StreamDevice> open_device(int ordinal) {
  expect_device(ordinal);
  try {
    return std::make_shared<CudaDevice>(ordinal);
  } catch (const Error& error) {
    throw Error(error.kind(), std::string(error.what()) +
                                  "; if the GPU worked in this process before, it is lost to it: restart the process");
  }
}

std::string build_text() {
  std::istringstream targets(TRT_MOE_CUDA_TARGETS);
  std::string text = "CUDA " + version_text(CUDART_VERSION) + " for";
  std::string target;
  for (const char* separator = " "; targets >> target; separator = ", ") text += separator + target;
  return text;
}

}  // namespace trt_moe::cuda
