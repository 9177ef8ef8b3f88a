// The device, its context and its errors.
#include "runtime.h"

#include <cuda.h>

#include <atomic>
#include <cstring>
#include <utility>

namespace on_host {

namespace {

std::atomic<cudaError_t> lost_by{cudaSuccess};
thread_local cudaError_t last_error = cudaSuccess;

}  // namespace

cudaError_t answer(cudaError_t status) {
  if (status != cudaSuccess) last_error = status;
  return status;
}

cudaError_t enter() {
  CUcontext primary = nullptr;
  CUcontext current = nullptr;
  cuDevicePrimaryCtxRetain(&primary, 0);
  cuCtxGetCurrent(&current);
  if (current == nullptr) cuCtxSetCurrent(primary);
  if (current != nullptr && current != primary) return cudaErrorInvalidResourceHandle;
  return lost_by;
}

void fault(cudaError_t error) { lost_by = error; }

cudaError_t loss() { return lost_by; }

}  // namespace on_host

using namespace on_host;

extern "C" {

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define ON_HOST_NAME(name) \
  case name: return #name
    ON_HOST_NAME(cudaSuccess);
    ON_HOST_NAME(cudaErrorInvalidValue);
    ON_HOST_NAME(cudaErrorMemoryAllocation);
    ON_HOST_NAME(cudaErrorInvalidDeviceFunction);
    ON_HOST_NAME(cudaErrorInvalidConfiguration);
    ON_HOST_NAME(cudaErrorInvalidResourceHandle);
    ON_HOST_NAME(cudaErrorIllegalAddress);
    ON_HOST_NAME(cudaErrorIllegalState);
    ON_HOST_NAME(cudaErrorNotSupported);
    ON_HOST_NAME(cudaErrorStreamCaptureUnsupported);
    ON_HOST_NAME(cudaErrorStreamCaptureInvalidated);
    ON_HOST_NAME(cudaErrorStreamCaptureWrongThread);
#undef ON_HOST_NAME
    default: return "an error that this runtime does not name";
  }
}

const char* cudaGetErrorString(cudaError_t) { return "CUDA on the CPU"; }

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::strcpy(properties->name, "CUDA on the CPU");
  properties->totalGlobalMem = kDeviceMemory;
  properties->major = kComputeMajor;
  return answer(enter());
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? kComputeMajor : 0;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  attributes->ptxVersion = 10 * kComputeMajor;
  return answer(knows(kernel) ? enter() : cudaErrorInvalidDeviceFunction);
}

}  // extern "C"
