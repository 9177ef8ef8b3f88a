// Runs kernels on the CPU, one block after the other in any order, each as fibers.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <utility>
#include <vector>

#include "fibers.h"

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
  static Conditionals& all = *new Conditionals;  // the process may end while a kernel runs
  return all;
}

// All blocks of a grid, in any order, as a GPU may take them.
inline std::vector<dim3> blocks_of(dim3 grid) {
  std::vector<dim3> all;
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      all.emplace_back(x, y);
      std::swap(all.back(), all[roll(static_cast<unsigned>(all.size()))]);
    }
  }
  return all;
}

// Runs a kernel, one block after the other.
template <typename... Arguments>
void launch(void (*kernel)(Arguments...), dim3 grid, dim3 threads, const std::tuple<Arguments...>& arguments) {
  struct Launch {
    void (*kernel)(Arguments...);
    const std::tuple<Arguments...>& arguments;
  } launch{kernel, arguments};
  Fibers fibers;
  for (const dim3 index : blocks_of(grid)) {
    const auto shared = std::make_unique<Block>(grid, index, threads);  // on the heap, see fibers.cc
    block = shared.get();
    fibers.run(
        threads.x,
        [](void* context) {
          const auto& its = *static_cast<const Launch*>(context);
          std::apply(its.kernel, its.arguments);
          warp().a_lane_ended = true;
          leave(warp().together);
          leave(block->together);
        },
        &launch);
  }
}

// One that takes a struct by value.
template <typename Arguments>
void launch(const void* kernel, dim3 grid, dim3 threads, const Arguments& arguments) {
  launch(reinterpret_cast<void (*)(Arguments)>(const_cast<void*>(kernel)), grid, threads, std::tuple{arguments});
}

}  // namespace on_host
