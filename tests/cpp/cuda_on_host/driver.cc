// libcuda.so.1, as far as the CUDA backend and its tests ask it: contexts, and which one is a thread's.
#include <cuda.h>

#include <cstdlib>
#include <map>
#include <mutex>

struct CUctx_st {};

namespace {

CUctx_st primary;
thread_local CUcontext current = nullptr;

// What was allocated here, rather than by the runtime; by where it ends, with the context that it was made in.
struct Allocation {
  CUdeviceptr begin = 0;
  CUcontext context = nullptr;
};
std::mutex mutex;
std::map<CUdeviceptr, Allocation> allocations;

}  // namespace

extern "C" {

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  if (ordinal != 0) return CUDA_ERROR_INVALID_DEVICE;
  *device = 0;
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
  *context = &primary;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext* context) {
  *context = current;
  return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) {
  current = context;
  return CUDA_SUCCESS;
}

// cuda.h of CUDA 13 names newer ones.
CUresult cuCtxCreate_v2(CUcontext* context, unsigned, CUdevice) {
  *context = current = new CUctx_st;
  return CUDA_SUCCESS;
}

CUresult cuCtxDestroy_v2(CUcontext context) {
  if (current == context) current = nullptr;
  delete context;
  return CUDA_SUCCESS;
}

CUresult cuMemAlloc_v2(CUdeviceptr* address, size_t bytes) {
  if (current == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  *address = reinterpret_cast<CUdeviceptr>(std::malloc(bytes));
  const std::lock_guard lock(mutex);
  allocations[*address + bytes] = {*address, current};
  return CUDA_SUCCESS;
}

CUresult cuMemFree_v2(CUdeviceptr address) {
  const std::lock_guard lock(mutex);
  const auto found = allocations.upper_bound(address);
  if (found == allocations.end() || found->second.begin != address) return CUDA_ERROR_INVALID_VALUE;
  allocations.erase(found);
  std::free(reinterpret_cast<void*>(address));
  return CUDA_SUCCESS;
}

// Of memory of the runtime's, which is all in the primary context, it knows nothing.
CUresult cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr address) {
  if (attribute != CU_POINTER_ATTRIBUTE_CONTEXT) return CUDA_ERROR_NOT_SUPPORTED;
  const std::lock_guard lock(mutex);
  const auto found = allocations.upper_bound(address);
  if (found == allocations.end() || address < found->second.begin) return CUDA_ERROR_INVALID_VALUE;
  *static_cast<CUcontext*>(value) = found->second.context;
  return CUDA_SUCCESS;
}

}  // extern "C"
