// Kernels by their addresses: CUDA's runtime is given nothing else, and has to know what they take.
#pragma once

#include <tuple>
#include <utility>

#include "blocks.h"
#include "runtime.h"

namespace on_host {

using Binder = std::function<Work(dim3 grid, dim3 threads, void** arguments)>;

template <typename... Arguments>
Binder binder_of(void (*kernel)(Arguments...)) {
  return [kernel](dim3 grid, dim3 threads, void** arguments) -> Work {
    const auto copied = [&]<std::size_t... i>(std::index_sequence<i...>) {
      return std::make_shared<const std::tuple<Arguments...>>(*static_cast<const Arguments*>(arguments[i])...);
    }(std::index_sequence_for<Arguments...>{});
    return [=] { launch(kernel, grid, threads, *copied); };
  };
}

void know(const void* kernel, Binder binder);

template <typename... Arguments>
void know(void (*kernel)(Arguments...)) {
  know(reinterpret_cast<const void*>(kernel), binder_of(kernel));
}

}  // namespace on_host
