#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>

namespace trt_moe::cuda {

// What the route kernel has room for.
inline constexpr std::size_t kMaxImages = 1024;  // in one batch
inline constexpr std::size_t kMaxExperts = 64;
inline constexpr std::size_t kMaxBodies = 384;  // buckets of all experts together

// What the kernels take by value. Addresses are the device's; answers may go to page-locked memory of the host, so a
// kernel writes each once, and reads none.

struct RoutingArguments {
  const std::int32_t* images = nullptr;  // [1]: how many of the batch are there
  const float* weight = nullptr;         // [1]
  const float* costs = nullptr;          // [experts]
  const float* logits = nullptr;         // [capacity, experts], the gater's
  float* gater_logits = nullptr;         // [capacity, experts], a copy of them: an answer
  std::int32_t* routes = nullptr;        // [capacity], an answer
  std::int32_t* rows = nullptr;          // [experts, capacity]
  std::int32_t* counts = nullptr;        // [experts]
  std::int32_t capacity = 0;
  std::int32_t experts = 0;
  std::int32_t first_conditional = 0;  // experts before this one run whatever the routes
};

struct RouteArguments {
  RoutingArguments routing;
  bool ifs = false;  // handles[body] are set to 1 or 0; else handles[expert] to the index of a bucket, or to their
                     // number for none
  std::uint16_t first_body[kMaxExperts + 1] = {};  // expert e has the bodies first_body[e] .. first_body[e + 1]
  std::uint16_t bucket[kMaxBodies] = {};           // the batch size of each body, ascending per expert
  cudaGraphConditionalHandle handles[kMaxBodies] = {};
};
static_assert(sizeof(RouteArguments) <= 4096, "what any driver lets a kernel take");

struct RouteImageArguments {
  RoutingArguments routing;               // capacity: 1
  cudaGraphConditionalHandle handle = 0;  // set to the expert's place among the conditional ones, or to their number
  const std::uint8_t* image = nullptr;    // [image_bytes]
  std::size_t image_bytes = 0;
  std::uint8_t* inputs[kMaxExperts] = {};  // of each expert
};

struct GatherArguments {
  const std::uint8_t* images = nullptr;  // [capacity, image_bytes]
  std::uint8_t* input = nullptr;         // [bucket, image_bytes], the expert's; rows past the count stay as they are
  const std::int32_t* rows = nullptr;    // the expert's row list
  const std::int32_t* count = nullptr;   // [1]
  std::size_t image_bytes = 0;
};

struct ScatterArguments {
  const float* logits = nullptr;        // [bucket, classes], the expert's
  float* probabilities = nullptr;       // [capacity, classes], an answer: softmax, or NaN where a logit is not finite
  const std::int32_t* rows = nullptr;   // the expert's row list
  const std::int32_t* count = nullptr;  // [1]
  std::size_t classes = 0;
};

struct CopyArguments {
  const std::byte* from = nullptr;
  std::byte* to = nullptr;
  std::size_t bytes = 0;
  std::size_t units = 0;  // of sixteen bytes; what is left over goes byte by byte
};

// What a kernel copies sooner than one of the engines for that, for which the kernels before and after have to wait. It
// reads and writes page-locked memory of the host as well.
inline constexpr std::size_t kMostBytesOfKernel = std::size_t{256} << 10;
inline constexpr std::size_t kMostBytesOneByOne = std::size_t{4} << 10;

// How a kernel is launched with such arguments.
struct KernelLaunch {
  const void* function = nullptr;
  dim3 grid;
  dim3 block;
};

template <typename... Arguments>
const void* kernel_address(void (*kernel)(Arguments...)) {
  return reinterpret_cast<const void*>(kernel);
}

// Chooses each image's expert, lists each expert's images in input order, and sets the conditional handles.
KernelLaunch route_kernel(const RouteArguments& arguments);
// The same for a single image, which it copies to its expert's input, if that is a conditional one.
KernelLaunch route_image_kernel(const RouteImageArguments& arguments);
// Copies an expert's images to its input. rows: the most there can be, no more than the row list has room for.
KernelLaunch gather_kernel(const GatherArguments& arguments, std::size_t rows);
// Turns an expert's logits into the probabilities of its images.
KernelLaunch scatter_kernel(const ScatterArguments& arguments, std::size_t rows);
CopyArguments copy_arguments(std::uintptr_t to, std::uintptr_t from, std::size_t bytes);
bool is_for_a_kernel(const CopyArguments& arguments);
// Copies what does not overlap. bytes: at least one.
KernelLaunch copy_kernel(const CopyArguments& arguments);

// Every kernel there is, for a device to load before any is part of a graph.
std::array<const void*, 7> all_kernels();

}  // namespace trt_moe::cuda
