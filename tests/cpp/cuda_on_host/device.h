// What CUDA C++ gives to kernels, on the CPU: .cu files compile with it as C++. A thread sanitizer finds the races of a
// block, and one whose threads wait for ever is aborted.
#pragma once

#include <bit>
#include <chrono>
#include <cmath>
#include <thread>

#include "blocks.h"

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

inline void cudaTriggerProgrammaticLaunchCompletion() {}
inline void cudaGridDependencySynchronize() { on_host::wait_for_those_ahead(); }

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
