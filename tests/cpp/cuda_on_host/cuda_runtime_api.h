// Stands in for CUDA's own header, so that kernels.cu compiles as C++ and runs on the CPU: a thread for each of its
// threads, one block after the other. A thread sanitizer then finds their races, and a divergent warp never ends.
#pragma once

#include <atomic>
#include <barrier>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(threads)
#define __shared__ static  // one block runs at a time

struct dim3 {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct alignas(16) float4 {
  float x, y, z, w;
};

using cudaGraphConditionalHandle = unsigned long long;

namespace on_host {

constexpr unsigned kLanes = 32;

struct Warp {
  std::barrier<> together{kLanes};
  std::atomic<int> ended{0};
  bool votes[kLanes] = {};
  float values[kLanes] = {};

  // All lanes, as the mask of every call here says; on a GPU it is undefined what comes of one that has ended.
  void meet() {
    together.arrive_and_wait();
    if (ended == 0) return;
    std::fputs("a lane of the warp has ended, and the others wait for it\n", stderr);
    std::abort();
  }
};

struct Block {
  explicit Block(unsigned threads) : together(threads), warps(threads / kLanes) {
    for (auto& warp : warps) warp = std::make_unique<Warp>();
  }
  std::barrier<> together;
  std::atomic<bool> all{true};
  std::vector<std::unique_ptr<Warp>> warps;
};

struct Conditional {
  unsigned value = 0;
  unsigned thread = 0;
  int times = 0;
};

// What cudaGraphSetConditional was called with.
struct Conditionals {
  std::mutex mutex;
  std::map<cudaGraphConditionalHandle, Conditional> set;
};

inline Conditionals& conditionals() {
  static Conditionals all;
  return all;
}

inline thread_local Block* block = nullptr;
inline thread_local Warp* warp = nullptr;

}  // namespace on_host

inline thread_local dim3 threadIdx;
inline thread_local dim3 blockIdx;
inline thread_local dim3 blockDim;
inline thread_local dim3 gridDim;

using std::isfinite;

inline int min(int a, int b) { return a < b ? a : b; }
inline float fmaxf(float a, float b) { return std::fmax(a, b); }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline int __popc(unsigned bits) { return std::popcount(bits); }

inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline unsigned atomicAdd(unsigned* to, unsigned value) { return std::atomic_ref(*to).fetch_add(value); }

inline void __syncthreads() { on_host::block->together.arrive_and_wait(); }

inline bool __syncthreads_and(bool holds) {
  if (!holds) on_host::block->all = false;
  __syncthreads();
  const bool all = on_host::block->all;
  __syncthreads();
  on_host::block->all = true;
  __syncthreads();
  return all;
}

inline unsigned __ballot_sync(unsigned, bool vote) {
  on_host::Warp& warp = *on_host::warp;
  warp.votes[threadIdx.x % on_host::kLanes] = vote;
  warp.meet();
  unsigned votes = 0;
  for (unsigned lane = 0; lane < on_host::kLanes; ++lane) votes |= warp.votes[lane] ? 1U << lane : 0U;
  warp.together.arrive_and_wait();
  return votes;
}

inline float __shfl_xor_sync(unsigned, float value, unsigned distance) {
  on_host::Warp& warp = *on_host::warp;
  const unsigned lane = threadIdx.x % on_host::kLanes;
  warp.values[lane] = value;
  warp.meet();
  const float other = warp.values[lane ^ distance];
  warp.together.arrive_and_wait();
  return other;
}

inline void cudaGraphSetConditional(cudaGraphConditionalHandle handle, unsigned value) {
  const std::lock_guard lock(on_host::conditionals().mutex);
  on_host::Conditional& conditional = on_host::conditionals().set[handle];
  conditional = {value, threadIdx.x, conditional.times + 1};
}

namespace on_host {

// Runs a kernel whose block is whole warps.
template <typename Arguments>
void launch(const void* function, dim3 grid, dim3 threads, const Arguments& arguments) {
  const auto kernel = reinterpret_cast<void (*)(Arguments)>(const_cast<void*>(function));
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      Block shared(threads.x);
      std::vector<std::jthread> running;
      for (unsigned thread = 0; thread < threads.x; ++thread) {
        running.emplace_back([&, x, y, thread] {
          block = &shared;
          warp = shared.warps[thread / kLanes].get();
          threadIdx = dim3(thread);
          blockIdx = dim3(x, y);
          blockDim = threads;
          gridDim = grid;
          kernel(arguments);
          // A thread that has ended is waited for no more.
          ++warp->ended;
          warp->together.arrive_and_drop();
          shared.together.arrive_and_drop();
        });
      }
    }
  }
}

}  // namespace on_host
