// What CUDA C++ gives to kernels, on the CPU: .cu files compile with it as C++, and run on fibers, one block after the
// other. A thread sanitizer finds the races of a block, and one whose threads wait for ever is aborted.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <tuple>
#include <vector>

#include "fibers.h"

#undef __global__
#undef __device__
#undef __shared__
#undef __grid_constant__
#undef __launch_bounds__
#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(threads)
#define __shared__ static thread_local  // a thread of the CPU runs one block at a time

namespace on_host {

constexpr unsigned kLanes = 32;

struct Warp {
  Meeting together;
  std::atomic<bool> a_lane_ended{false};
  bool votes[kLanes] = {};
  float values[kLanes] = {};
};

struct Block {
  Block(dim3 grid_, dim3 index_, dim3 threads_) : grid(grid_), index(index_), threads(threads_) {
    together.expected = threads.x;
    for (unsigned first = 0; first < threads.x; first += kLanes) {
      warps.push_back(std::make_unique<Warp>());
      warps.back()->together.expected = std::min(kLanes, threads.x - first);
    }
  }

  dim3 grid;
  dim3 index;
  dim3 threads;
  Meeting together;
  std::atomic<bool> all{true};
  std::vector<std::unique_ptr<Warp>> warps;
};

inline thread_local Block* block = nullptr;

inline Warp& warp() { return *block->warps[this_fiber() / kLanes]; }

// All lanes, as the mask of every call here says; on a GPU it is undefined what comes of one that has ended.
inline void meet_lanes(Warp& warp) {
  if (warp.a_lane_ended) {
    std::fputs("a lane of the warp has ended, and the others wait for it\n", stderr);
    std::abort();
  }
  meet(warp.together);
}

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

// Runs a kernel, one block after the other.
template <typename... Arguments>
void launch(void (*kernel)(Arguments...), dim3 grid, dim3 threads, const std::tuple<Arguments...>& arguments) {
  struct Launch {
    void (*kernel)(Arguments...);
    const std::tuple<Arguments...>& arguments;
  } launch{kernel, arguments};
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      Block shared(grid, dim3(x, y), threads);
      block = &shared;
      run_fibers(
          threads.x,
          [](void* context) {
            const auto& [kernel, arguments] = *static_cast<const Launch*>(context);
            std::apply(kernel, arguments);
            Warp& its = warp();
            its.a_lane_ended = true;
            leave(its.together);
            leave(block->together);
          },
          &launch);
    }
  }
}

// One that takes a struct by value.
template <typename Arguments>
void launch(const void* kernel, dim3 grid, dim3 threads, const Arguments& arguments) {
  launch(reinterpret_cast<void (*)(Arguments)>(const_cast<void*>(kernel)), grid, threads, std::tuple{arguments});
}

}  // namespace on_host

#define threadIdx (dim3(::on_host::this_fiber(), 0, 0))
#define blockIdx (::on_host::block->index)
#define blockDim (::on_host::block->threads)
#define gridDim (::on_host::block->grid)

using std::isfinite;

inline int min(int a, int b) { return a < b ? a : b; }
inline float fmaxf(float a, float b) { return std::fmax(a, b); }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline int __popc(unsigned bits) { return std::popcount(bits); }

inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline unsigned atomicAdd(unsigned* to, unsigned value) { return std::atomic_ref(*to).fetch_add(value); }
inline void __nanosleep(unsigned nanoseconds) { std::this_thread::sleep_for(std::chrono::nanoseconds(nanoseconds)); }

inline void __syncthreads() { on_host::meet(on_host::block->together); }

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
  on_host::Warp& warp = on_host::warp();
  warp.votes[on_host::this_fiber() % on_host::kLanes] = vote;
  on_host::meet_lanes(warp);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < on_host::kLanes; ++lane) votes |= warp.votes[lane] ? 1U << lane : 0U;
  on_host::meet(warp.together);
  return votes;
}

inline float __shfl_xor_sync(unsigned, float value, unsigned distance) {
  on_host::Warp& warp = on_host::warp();
  const unsigned lane = on_host::this_fiber() % on_host::kLanes;
  warp.values[lane] = value;
  on_host::meet_lanes(warp);
  const float other = warp.values[lane ^ distance];
  on_host::meet(warp.together);
  return other;
}

inline void cudaGraphSetConditional(cudaGraphConditionalHandle handle, unsigned value) {
  const std::lock_guard lock(on_host::conditionals().mutex);
  on_host::Conditional& conditional = on_host::conditionals().set[handle];
  conditional = {value, on_host::this_fiber(), conditional.times + 1};
}
