#include <stdexcept>

#include "toy_kernels.h"

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

__global__ void illegal_write(float* target) { *target = 0.0F; }

void expect_launched() {
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

template <typename T>
T* at(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace

void enqueue_toy_model(std::uintptr_t stream, std::uintptr_t images, std::uintptr_t logits, std::size_t count,
                       std::size_t image_bytes, std::size_t outputs, double scale) {
  toy_model<<<static_cast<unsigned>(count), static_cast<unsigned>(outputs), 0, at<CUstream_st>(stream)>>>(
      at<const std::uint8_t>(images), at<float>(logits), image_bytes, scale);
  expect_launched();
}

void enqueue_slow_write(std::uintptr_t stream, std::uintptr_t target, float value, unsigned microseconds) {
  slow_write<<<1, 1, 0, at<CUstream_st>(stream)>>>(at<float>(target), value, microseconds);
  expect_launched();
}

void enqueue_kernel(std::uintptr_t stream, const cuda::KernelLaunch& launch, const void* arguments) {
  void* pointers[] = {const_cast<void*>(arguments)};
  if (cudaLaunchKernel(launch.function, launch.grid, launch.block, pointers, 0, at<CUstream_st>(stream)) != cudaSuccess)
    expect_launched();
}

void enqueue_illegal_write(std::uintptr_t stream) {
  illegal_write<<<1, 1, 0, at<CUstream_st>(stream)>>>(at<float>(16));
  expect_launched();
}

}  // namespace trt_moe::testing
