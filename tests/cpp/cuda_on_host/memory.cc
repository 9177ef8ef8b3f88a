// Memory of the device, and page-locked memory of the host: both on the heap.
#include <cuda.h>

#include <cstdlib>
#include <cstring>
#include <map>

#include "runtime.h"

namespace on_host {

namespace {

constexpr int kFresh = 0xCD;  // what new memory is full of

struct Allocation {
  std::size_t bytes = 0;
  Memory memory = Memory::kDevice;
};

struct Allocations {
  std::mutex mutex;
  std::map<std::uintptr_t, Allocation> by_address;
};

Allocations& allocations() {
  static Allocations& all = *new Allocations;
  return all;
}

cudaError_t allocate(void** address, std::size_t bytes, Memory memory) {
  if (const cudaError_t status = enter_beside_captures(); status != cudaSuccess) return answer(status);
  if (bytes > kDeviceMemory) return answer(cudaErrorMemoryAllocation);
  constexpr std::size_t kAlignment = 256;
  if (posix_memalign(address, kAlignment, bytes) != 0) return answer(cudaErrorMemoryAllocation);
  std::memset(*address, kFresh, bytes);
  const std::lock_guard lock(allocations().mutex);
  allocations().by_address[reinterpret_cast<std::uintptr_t>(*address)] = {bytes, memory};
  return cudaSuccess;
}

cudaError_t release(void* address, Memory memory) {
  if (const cudaError_t status = enter_beside_captures(); status != cudaSuccess) return answer(status);
  if (address == nullptr) return cudaSuccess;
  {
    const std::lock_guard lock(allocations().mutex);
    const auto found = allocations().by_address.find(reinterpret_cast<std::uintptr_t>(address));
    if (found == allocations().by_address.end() || found->second.memory != memory) return answer(cudaErrorInvalidValue);
    allocations().by_address.erase(found);
  }
  // CUDA would wait for the device first. Here work that still uses it is found.
  std::free(address);
  return cudaSuccess;
}

}  // namespace

Memory memory_of(const void* address) {
  CUcontext context = nullptr;
  if (cuPointerGetAttribute(&context, CU_POINTER_ATTRIBUTE_CONTEXT, reinterpret_cast<CUdeviceptr>(address)) ==
      CUDA_SUCCESS) {
    return Memory::kDevice;
  }
  const std::lock_guard lock(allocations().mutex);
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  auto found = allocations().by_address.upper_bound(at);
  if (found == allocations().by_address.begin()) return Memory::kPageable;
  --found;
  return at < found->first + found->second.bytes ? found->second.memory : Memory::kPageable;
}

}  // namespace on_host

using namespace on_host;

extern "C" {

cudaError_t cudaMalloc(void** address, std::size_t bytes) { return allocate(address, bytes, Memory::kDevice); }
cudaError_t cudaFree(void* address) { return release(address, Memory::kDevice); }
cudaError_t cudaHostAlloc(void** address, std::size_t bytes, unsigned) {
  return allocate(address, bytes, Memory::kPinned);
}
cudaError_t cudaFreeHost(void* address) { return release(address, Memory::kPinned); }

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
  if (const cudaError_t status = enter(); status != cudaSuccess) return answer(status);
  const Memory memory = memory_of(address);
  *attributes = {};
  attributes->type = memory == Memory::kDevice   ? cudaMemoryTypeDevice
                     : memory == Memory::kPinned ? cudaMemoryTypeHost
                                                 : cudaMemoryTypeUnregistered;
  attributes->device = memory == Memory::kPageable ? -1 : 0;
  attributes->devicePointer = memory == Memory::kPageable ? nullptr : const_cast<void*>(address);
  return cudaSuccess;
}

}  // extern "C"
