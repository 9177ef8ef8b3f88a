#include "backends/cuda/primary_context.h"

#include <dlfcn.h>

#include "core/error.h"

namespace trt_moe::cuda {

namespace {

// The runtime and the driver have the same numbers for the same errors.
cudaError_t as_runtime(CUresult result) noexcept { return static_cast<cudaError_t>(result); }

template <typename Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr) {
    throw Error(ErrorKind::kDevice, std::string("the libcuda.so.1 that was found is not NVIDIA's: it has no ") + name);
  }
}

}  // namespace

PrimaryContext::Driver PrimaryContext::open_driver() {
  // Never closed: the runtime keeps it open as well.
  void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw Error(ErrorKind::kDevice, std::string("the NVIDIA driver does not load: ") + dlerror());
  Driver driver;
  find(library, "cuDeviceGet", driver.get_device);
  find(library, "cuDevicePrimaryCtxRetain", driver.retain);
  find(library, "cuCtxGetCurrent", driver.get_current);
  find(library, "cuCtxSetCurrent", driver.set_current);
  find(library, "cuPointerGetAttribute", driver.ask_pointer);
  return driver;
}

PrimaryContext::PrimaryContext(int ordinal) : ordinal_(ordinal), driver_(open_driver()) {
  CUdevice device = 0;
  if (const CUresult result = driver_.get_device(&device, ordinal); result != CUDA_SUCCESS) {
    fail(as_runtime(result), "cuDeviceGet");
  }
  // Never released: the runtime keeps it until the process ends, too.
  if (const CUresult result = driver_.retain(&handle_, device); result != CUDA_SUCCESS) {
    fail(as_runtime(result), "cuDevicePrimaryCtxRetain");
  }
  const ContextScope scope(*this);
  const BesideCaptures beside;
  TRT_MOE_CUDA_CHECK(scope, cudaFree(nullptr));  // starts the runtime
}

bool PrimaryContext::is_of_another(std::uintptr_t address) const noexcept {
  CUcontext owner = nullptr;
  // Memory of a pool, or mapped by hand, has none.
  const CUresult result = driver_.ask_pointer(&owner, CU_POINTER_ATTRIBUTE_CONTEXT, address);
  return result == CUDA_SUCCESS && owner != nullptr && owner != handle_;
}

void PrimaryContext::fail(cudaError_t status, const std::string& call) {
  cudaGetLastError();  // the runtime would report it again to whoever asks next
  const std::string text = error_text(status, call);
  if (is_sticky(status)) {
    const std::lock_guard lock(lost_mutex_);
    if (lost_.empty()) lost_ = text;
    usable_.store(false, std::memory_order_release);
  }
  throw Error(ErrorKind::kDevice, text);
}

std::string PrimaryContext::lost() const {
  const std::lock_guard lock(lost_mutex_);
  return lost_;
}

ContextGuard::ContextGuard(PrimaryContext& context) noexcept : context_(context) {
  CUcontext current = nullptr;
  context_.driver_.get_current(&current);
  if (current == context_.handle_) return;
  status_ = as_runtime(context_.driver_.set_current(context_.handle_));
  if (status_ == cudaSuccess) before_ = current;
}

ContextGuard::~ContextGuard() {
  if (before_ != nullptr) context_.driver_.set_current(before_);
}

ContextScope::ContextScope(PrimaryContext& context) : context_(context), guard_(context) {
  if (!context_.usable()) throw Error(ErrorKind::kDevice, context_.lost());
  check(guard_.status(), "cuCtxSetCurrent");
}

}  // namespace trt_moe::cuda
