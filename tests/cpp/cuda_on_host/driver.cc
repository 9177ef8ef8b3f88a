// libcuda.so.1, as far as the CUDA backend and its tests ask it: contexts, and which one is a thread's.
#include <cuda.h>

struct CUctx_st {};

namespace {

CUctx_st primary;
thread_local CUcontext current = nullptr;

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

}  // extern "C"
