#include "backends/cuda/cuda_check.h"

namespace trt_moe::cuda {

namespace {

const char* what_to_do(cudaError_t status) {
  switch (status) {
    case cudaErrorInitializationError:
      return "a forked process cannot use what its parent opened: start it with the 'spawn' method, or open the device "
             "in the child only";
    case cudaErrorMemoryAllocation: return "other processes may hold the device's memory: `nvidia-smi` lists them";
    case cudaErrorDevicesUnavailable:
      return "another process has the device for itself, or its compute mode is 'prohibited': `nvidia-smi -q` tells";
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorInvalidPtx:
      return "this build has no kernels for the device: build trt-moe on this machine, or update the driver";
    case cudaErrorInvalidResourceHandle:
      return "a stream belongs to another device, or to a context that is not the primary one (with pycuda, import "
             "pycuda.autoprimaryctx instead of pycuda.autoinit)";
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable: return "the hardware failed: look into `dmesg` and `nvidia-smi -q`";
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorLaunchFailure:
    case cudaErrorAssert: return "a kernel went wrong: compute-sanitizer shows which";
    case cudaErrorLaunchTimeout: return "a kernel ran too long on a GPU that also drives a display";
    case cudaErrorSystemNotReady: return "start the NVIDIA fabric manager, or wait until it is up";
    case cudaErrorSystemDriverMismatch: return "kernel module and libcuda have different versions: reboot";
    case cudaErrorStreamCaptureWrongThread: return "begin and end a capture on the same thread";
    case cudaErrorStreamCaptureUnsupported:
    case cudaErrorStreamCaptureInvalidated:
    case cudaErrorStreamCaptureImplicit:
      return "the captured work synchronized, allocated memory or used the legacy default stream, or another thread "
             "synchronized the whole device meanwhile";
    case cudaErrorStreamCaptureUnjoined: return "the captured work left another stream without waiting for it";
    default: return "with CUDA_LOG_FILE=stderr in the environment, drivers from CUDA 12.9 on say more";
  }
}

}  // namespace

bool is_sticky(cudaError_t status) noexcept {
  switch (status) {
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorContextIsDestroyed:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorMpsClientTerminated:
    case cudaErrorExternalDevice:
    case cudaErrorUnknown: return true;
    default:
      // cudaErrorContained and cudaErrorTensorMemoryLeak, which older headers do not name.
      return static_cast<int>(status) == 226 || static_cast<int>(status) == 721;
  }
}

std::string error_text(cudaError_t status, const std::string& call) {
  return call.substr(0, call.find('(')) + " failed with " + cudaGetErrorName(status) + " (" +
         cudaGetErrorString(status) + "); " + what_to_do(status);
}

}  // namespace trt_moe::cuda
