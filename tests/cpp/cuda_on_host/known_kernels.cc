#include "known_kernels.h"

#include <map>

#include "backends/cuda/gater_kernels.h"
#include "backends/cuda/kernels.h"

namespace on_host {

namespace {

using Binder = std::function<Work(dim3, dim3, void**)>;

struct Known {
  std::mutex mutex;
  std::map<const void*, Binder> binders;

  Known();
  template <typename Arguments>
  void add(const void* kernel);
};

template <typename Arguments>
void Known::add(const void* kernel) {
  binders[kernel] = [kernel](dim3 grid, dim3 threads, void** arguments) -> Work {
    const auto copied = std::make_shared<const Arguments>(*static_cast<const Arguments*>(arguments[0]));
    return [=] { launch(kernel, grid, threads, *copied); };
  };
}

Known::Known() {
  using namespace trt_moe::cuda;
  const auto all = all_kernels();
  add<RouteArguments>(all[0]);
  add<GatherArguments>(all[1]);
  add<GatherArguments>(all[2]);
  add<ScatterArguments>(all[3]);
  const auto gater = all_gater_kernels();
  add<GaterStemArguments>(gater[0]);
  add<GaterMiddleArguments>(gater[1]);
  add<GaterHeadArguments>(gater[2]);
  add<GaterHeadArguments>(gater[3]);
}

Known& known() {
  static Known& all = *new Known;
  return all;
}

}  // namespace

void know(const void* kernel, Binder binder) {
  const std::lock_guard lock(known().mutex);
  known().binders[kernel] = std::move(binder);
}

bool knows(const void* kernel) {
  const std::lock_guard lock(known().mutex);
  return known().binders.count(kernel) == 1;
}

Work bind(const void* kernel, dim3 grid, dim3 threads, void** arguments) {
  const std::lock_guard lock(known().mutex);
  const auto found = known().binders.find(kernel);
  return found == known().binders.end() ? nullptr : found->second(grid, threads, arguments);
}

}  // namespace on_host
