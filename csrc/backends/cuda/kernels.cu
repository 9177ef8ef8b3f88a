#include <algorithm>

#include "backends/cuda/kernels.h"

namespace trt_moe::cuda {

namespace {

constexpr unsigned kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffU;
constexpr unsigned kMaxRouteThreads = 1024;
constexpr unsigned kImageThreads = 256;  // that copy images
constexpr unsigned kMaxScatterThreads = 256;
constexpr unsigned kCopyThreads = 256;

// The same operations as choose_route of core/route_plan.h, rounded after each: no fused multiply-add. All loads are
// made whatever the values, so that they need not wait for each other.
__device__ int choose_expert(const float* logits, const float* costs, float weight, int experts) {
  bool finite = true;
  int best = 0;
  float best_score = 0.0F;
#pragma unroll 4
  for (int expert = 0; expert < experts; ++expert) {
    const float logit = logits[expert];
    const float score = __fsub_rn(logit, __fmul_rn(weight, costs[expert]));
    finite = finite && isfinite(logit);
    if (expert == 0 || score > best_score) {
      best = expert;
      best_score = score;
    }
  }
  return finite ? best : -1;
}

// One thread calls it, for one expert after the other: CUDA leaves undefined what calls of cudaGraphSetConditional do
// that may run at once.
__device__ void set_bodies(const RouteArguments& a, int expert, int count) {
  const int first = a.first_body[expert];
  const int bodies = a.first_body[expert + 1] - first;
  int chosen = bodies;
  if (count > 0) {
    chosen = 0;
    while (chosen < bodies && a.bucket[first + chosen] < count) ++chosen;
  }
  if (a.ifs) {
    for (int body = 0; body < bodies; ++body)
      cudaGraphSetConditional(a.handles[first + body], body == chosen ? 1U : 0U);
  } else {
    cudaGraphSetConditional(a.handles[expert], static_cast<unsigned>(chosen));
  }
}

// One block. First a thread per image chooses, then a warp per expert lists, then one thread sets the handles.
__global__ void __launch_bounds__(kMaxRouteThreads) route(const __grid_constant__ RouteArguments arguments) {
  const RoutingArguments& a = arguments.routing;
  __shared__ std::int8_t chosen[kMaxImages];
  __shared__ int counts[kMaxExperts];
  const int threads = static_cast<int>(blockDim.x);
  const int thread = static_cast<int>(threadIdx.x);
  const int images = min(*a.images, a.capacity);
  const float weight = *a.weight;
  for (int image = thread; image < images; image += threads) {
    const int expert = choose_expert(a.logits + image * a.experts, a.costs, weight, a.experts);
    chosen[image] = static_cast<std::int8_t>(expert);
    a.routes[image] = expert;
  }
  for (int i = thread; i < images * a.experts; i += threads) a.gater_logits[i] = a.logits[i];
  __syncthreads();

  const int lane = thread % static_cast<int>(kWarp);
  for (int expert = thread / static_cast<int>(kWarp); expert < a.experts; expert += threads / static_cast<int>(kWarp)) {
    std::int32_t* const rows = a.rows + expert * a.capacity;
    int count = 0;
    for (int first = 0; first < images; first += static_cast<int>(kWarp)) {
      const int image = first + lane;
      const bool its = image < images && chosen[image] == expert;
      const unsigned votes = __ballot_sync(kAllLanes, its);
      if (its) rows[count + __popc(votes & ((1U << lane) - 1U))] = image;
      count += __popc(votes);
    }
    if (lane == 0) a.counts[expert] = counts[expert] = count;
  }
  __syncthreads();
  if (thread != 0) return;
  for (int expert = a.first_conditional; expert < a.experts; ++expert) set_bodies(arguments, expert, counts[expert]);
}

// Every thread chooses, and copies one unit; the first block tells. All is asked for at once, as in choose_expert.
template <typename Unit>
__global__ void __launch_bounds__(kImageThreads) route_image(const __grid_constant__ RouteImageArguments arguments) {
  const RoutingArguments& a = arguments.routing;
  const std::size_t unit = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const bool copies = unit < arguments.image_bytes / sizeof(Unit);
  Unit pixels{};
  if (copies) pixels = reinterpret_cast<const Unit*>(arguments.image)[unit];
  const bool there = *a.images > 0;
  const int chosen = choose_expert(a.logits, a.costs, *a.weight, a.experts);
  const int expert = there ? chosen : -1;
  if (copies && expert >= a.first_conditional) reinterpret_cast<Unit*>(arguments.inputs[expert])[unit] = pixels;
  if (blockIdx.x > 0) return;

  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < a.experts; i += static_cast<int>(blockDim.x)) {
    if (there) a.gater_logits[i] = a.logits[i];
    a.counts[i] = i == expert ? 1 : 0;
  }
  if (thread != 0) return;
  if (there) a.routes[0] = expert;
  if (expert >= 0) a.rows[expert] = 0;
  const int body = expert >= a.first_conditional ? expert - a.first_conditional : a.experts - a.first_conditional;
  cudaGraphSetConditional(arguments.handle, static_cast<unsigned>(body));
}

// blockIdx.y: a row of the expert's input. A thread copies one unit.
template <typename Unit>
__global__ void __launch_bounds__(kImageThreads) gather(GatherArguments a) {
  const std::size_t slot = blockIdx.y;
  const auto count = static_cast<std::size_t>(*a.count);
  const auto image = static_cast<std::size_t>(a.rows[slot]);  // stale past the count, and loaded without waiting for it
  const std::size_t units = a.image_bytes / sizeof(Unit);
  const std::size_t unit = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (slot >= count || unit >= units) return;
  reinterpret_cast<Unit*>(a.input)[slot * units + unit] = reinterpret_cast<const Unit*>(a.images)[image * units + unit];
}

struct Largest {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};
struct Sum {
  __device__ float operator()(float a, float b) const { return a + b; }
};

// Of one value a thread; every thread of the block gets the same result, whatever the timing.
template <typename Operation>
__device__ float reduce(float value, Operation operation) {
  __shared__ float of_warp[kMaxScatterThreads / kWarp];
  for (unsigned distance = kWarp / 2; distance > 0; distance /= 2) {
    value = operation(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = of_warp[0];
  for (unsigned warp = 1; warp < blockDim.x / kWarp; ++warp) value = operation(value, of_warp[warp]);
  return value;
}

// blockIdx.x: a row of the expert's output.
__global__ void __launch_bounds__(kMaxScatterThreads) scatter(ScatterArguments a) {
  const std::size_t slot = blockIdx.x;
  const auto count = static_cast<std::size_t>(*a.count);
  const auto image = static_cast<std::size_t>(a.rows[slot]);
  if (slot >= count) return;
  const float* const logits = a.logits + slot * a.classes;
  float* const probabilities = a.probabilities + image * a.classes;

  bool finite = true;
  float largest = -INFINITY;
  for (std::size_t i = threadIdx.x; i < a.classes; i += blockDim.x) {
    finite = finite && isfinite(logits[i]);
    largest = fmaxf(largest, logits[i]);
  }
  if (!__syncthreads_and(finite)) {
    for (std::size_t i = threadIdx.x; i < a.classes; i += blockDim.x) probabilities[i] = NAN;
    return;
  }
  largest = reduce(largest, Largest{});
  float sum = 0.0F;
  for (std::size_t i = threadIdx.x; i < a.classes; i += blockDim.x) sum += expf(logits[i] - largest);
  sum = reduce(sum, Sum{});
  for (std::size_t i = threadIdx.x; i < a.classes; i += blockDim.x) probabilities[i] = expf(logits[i] - largest) / sum;
}

__global__ void __launch_bounds__(kCopyThreads) copy(CopyArguments a) {
  const std::size_t thread = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (thread < a.units) reinterpret_cast<uint4*>(a.to)[thread] = reinterpret_cast<const uint4*>(a.from)[thread];
  const std::size_t rest = a.units * sizeof(uint4) + thread;
  if (rest < a.bytes) a.to[rest] = a.from[rest];
}

unsigned whole_warps(std::size_t threads, unsigned most) {
  return static_cast<unsigned>(std::min<std::size_t>((threads + kWarp - 1) / kWarp * kWarp, most));
}

unsigned blocks_of(std::size_t threads, unsigned block) { return static_cast<unsigned>((threads + block - 1) / block); }

std::uintptr_t bits(const void* address) { return reinterpret_cast<std::uintptr_t>(address); }

// all: the bits of addresses and sizes.
bool vectorizes(std::uintptr_t all) { return all % sizeof(uint4) == 0; }

// Of a kernel that copies so many images, by sixteen bytes or one by one.
KernelLaunch copying(const void* by_vectors, const void* by_bytes, bool vectors, std::size_t image_bytes,
                     std::size_t images) {
  const std::size_t units = image_bytes / (vectors ? sizeof(uint4) : 1);
  return {vectors ? by_vectors : by_bytes, dim3(blocks_of(units, kImageThreads), static_cast<unsigned>(images)),
          dim3(kImageThreads)};
}

}  // namespace

KernelLaunch route_kernel(const RouteArguments& arguments) {
  const auto capacity = static_cast<std::size_t>(arguments.routing.capacity);
  const auto experts = static_cast<std::size_t>(arguments.routing.experts);
  return {kernel_address(route), dim3(1), dim3(whole_warps(std::max(capacity, experts * kWarp), kMaxRouteThreads))};
}

KernelLaunch route_image_kernel(const RouteImageArguments& arguments) {
  std::uintptr_t all = bits(arguments.image) | arguments.image_bytes;
  for (const std::uint8_t* const input : arguments.inputs) all |= bits(input);
  return copying(kernel_address(route_image<uint4>), kernel_address(route_image<std::uint8_t>), vectorizes(all),
                 arguments.image_bytes, 1);
}

KernelLaunch gather_kernel(const GatherArguments& arguments, std::size_t rows) {
  return copying(kernel_address(gather<uint4>), kernel_address(gather<std::uint8_t>),
                 vectorizes(bits(arguments.images) | bits(arguments.input) | arguments.image_bytes),
                 arguments.image_bytes, rows);
}

KernelLaunch scatter_kernel(const ScatterArguments& arguments, std::size_t rows) {
  return {kernel_address(scatter), dim3(static_cast<unsigned>(rows)),
          dim3(whole_warps(arguments.classes, kMaxScatterThreads))};
}

CopyArguments copy_arguments(std::uintptr_t to, std::uintptr_t from, std::size_t bytes) {
  const bool vectors = (to | from) % sizeof(uint4) == 0;
  return {reinterpret_cast<const std::byte*>(from), reinterpret_cast<std::byte*>(to), bytes,
          vectors ? bytes / sizeof(uint4) : 0};
}

bool is_for_a_kernel(const CopyArguments& arguments) {
  const std::size_t rest = arguments.bytes - arguments.units * sizeof(uint4);
  return arguments.bytes > 0 && arguments.bytes <= kMostBytesOfKernel && rest <= kMostBytesOneByOne;
}

KernelLaunch copy_kernel(const CopyArguments& arguments) {
  const std::size_t threads = std::max(arguments.units, arguments.bytes - arguments.units * sizeof(uint4));
  return {kernel_address(copy), dim3(blocks_of(threads, kCopyThreads)), dim3(kCopyThreads)};
}

std::array<const void*, 7> all_kernels() {
  return {
      kernel_address(route),         kernel_address(route_image<uint4>),   kernel_address(route_image<std::uint8_t>),
      kernel_address(gather<uint4>), kernel_address(gather<std::uint8_t>), kernel_address(scatter),
      kernel_address(copy)};
}

}  // namespace trt_moe::cuda
