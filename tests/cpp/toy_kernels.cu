#include <stdexcept>

#include "toy_kernels.h"

#ifdef TRT_MOE_CUDA_ON_HOST
#include "known_kernels.h"
#endif

namespace trt_moe::testing {

namespace {

// A block an image; a thread an output. Each thread sums the whole image: toys are small.
__global__ void toy_model(const std::uint8_t* images, float* logits, std::size_t image_bytes, double scale) {
  const std::uint8_t* const image = images + blockIdx.x * image_bytes;
  unsigned long long sum = 0;
  for (std::size_t i = 0; i < image_bytes; ++i) sum += image[i];
  const double position = static_cast<double>(sum) / (255.0 * static_cast<double>(image_bytes));
  const double middle = (threadIdx.x + 0.5) / blockDim.x;
  logits[std::size_t{blockIdx.x} * blockDim.x + threadIdx.x] =
      static_cast<float>(scale * (2 * middle * position - middle * middle));
}

__global__ void slow_write(float* target, float value, unsigned microseconds) {
  for (unsigned i = 0; i < microseconds; ++i) __nanosleep(1000);
  *target = value;
}

__global__ void illegal_write(float* target) {
#ifdef TRT_MOE_CUDA_ON_HOST
  static_cast<void>(target);
  on_host::fault(cudaErrorIllegalAddress);
#else
  *target = 0.0F;
#endif
}

template <typename... Arguments>
void enqueue(std::uintptr_t stream, void (*kernel)(Arguments...), dim3 grid, dim3 block, Arguments... arguments) {
#ifdef TRT_MOE_CUDA_ON_HOST
  on_host::know(kernel);
#endif
  void* pointers[] = {&arguments...};
  const cudaError_t status =
      cudaLaunchKernel(cuda::kernel_address(kernel), grid, block, pointers, 0, reinterpret_cast<cudaStream_t>(stream));
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

template <typename T>
T* at(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace

void enqueue_toy_model(std::uintptr_t stream, std::uintptr_t images, std::uintptr_t logits, std::size_t count,
                       std::size_t image_bytes, std::size_t outputs, double scale) {
  enqueue(stream, toy_model, dim3(static_cast<unsigned>(count)), dim3(static_cast<unsigned>(outputs)),
          at<const std::uint8_t>(images), at<float>(logits), image_bytes, scale);
}

void enqueue_slow_write(std::uintptr_t stream, std::uintptr_t target, float value, unsigned microseconds) {
  enqueue(stream, slow_write, dim3(1), dim3(1), at<float>(target), value, microseconds);
}

void enqueue_kernel(std::uintptr_t stream, const cuda::KernelLaunch& launch, const void* arguments) {
  void* pointers[] = {const_cast<void*>(arguments)};
  const cudaError_t status =
      cudaLaunchKernel(launch.function, launch.grid, launch.block, pointers, 0, reinterpret_cast<cudaStream_t>(stream));
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

void enqueue_illegal_write(std::uintptr_t stream) { enqueue(stream, illegal_write, dim3(1), dim3(1), at<float>(16)); }

}  // namespace trt_moe::testing
