#include "known_kernels.h"

#include <map>

#include "backends/cuda/gater_kernels.h"
#include "backends/cuda/kernels.h"
#include "backends/cuda/plan/gater_net.h"

namespace on_host {

namespace {

struct Known {
  std::mutex mutex;
  std::map<const void*, Binder> binders;

  Known();
  template <typename Arguments>
  void add(const void* kernel);
};

template <typename Arguments>
void Known::add(const void* kernel) {
  binders[kernel] = binder_of(reinterpret_cast<void (*)(Arguments)>(const_cast<void*>(kernel)));
}

Known::Known() {
  using namespace trt_moe::cuda;
  add<RouteArguments>(route_kernel({}).function);
  for (const std::size_t image_bytes : {16U, 7U}) {
    RouteImageArguments image;
    GatherArguments gather;
    image.image_bytes = gather.image_bytes = image_bytes;
    add<RouteImageArguments>(route_image_kernel(image).function);
    add<GatherArguments>(gather_kernel(gather, 1).function);
  }
  add<ScatterArguments>(scatter_kernel({}, 1).function);
  add<CopyArguments>(copy_kernel({}).function);
  // A GPU would be lost by it.
  binders[copy_kernel({}).function] = [copy = binders[copy_kernel({}).function]](dim3 grid, dim3 threads,
                                                                                 void** arguments) -> Work {
    const auto& [from, to, bytes, units] = *static_cast<const CopyArguments*>(arguments[0]);
    const bool pageable = memory_of(from) == Memory::kPageable || memory_of(to) == Memory::kPageable;
    return pageable ? nullptr : copy(grid, threads, arguments);
  };
  for (const bool third : {false, true}) {
    const GaterRun run = gater_run({{48, 48, 3}, 48, 48, third, 2}, 1, 0, 0, 0, 1);
    const GaterKernels gater = gater_kernels(run);
    for (std::size_t i = 0; i < gater.count; ++i) {
      const auto& [launched, arguments] = gater.kernels[i];
      if (arguments == &run.stem) add<GaterStemArguments>(launched.function);
      if (arguments == &run.middle) add<GaterMiddleArguments>(launched.function);
      if (arguments == &run.head) add<GaterHeadArguments>(launched.function);
    }
  }
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
