#include "backends/registry.h"

#include "core/error.h"
#include "core/forks.h"
#ifdef TRT_MOE_WITH_CUDA
#include "backends/cuda/open_device.h"
#endif
#ifdef TRT_MOE_WITH_OPENVINO
#include "backends/openvino/openvino_backend.h"
#endif

namespace trt_moe {

std::vector<std::string> built_backends() {
  std::vector<std::string> names;
#ifdef TRT_MOE_WITH_OPENVINO
  names.emplace_back("openvino");
#endif
  return names;
}

std::shared_ptr<Backend> make_backend(const std::string& name) {
  // Its runtimes, too, have threads that a fork lacks, and would wait for them for ever.
  static const ForkMark first_used;
  first_used.expect_not_forked();
#ifdef TRT_MOE_WITH_OPENVINO
  if (name == "openvino") return make_openvino_backend();
#endif
  std::string built;
  for (const std::string& other : built_backends()) built += (built.empty() ? "" : ", ") + other;
  throw Error(ErrorKind::kDevice, "this build of trt-moe has no backend '" + name + "'; it has: " + built +
                                      ". `trt-moe doctor` says what each backend needs");
}

std::string cuda_build() {
#ifdef TRT_MOE_WITH_CUDA
  return cuda::build_text();
#else
  return "";
#endif
}

namespace {

void expect_cuda() {
#ifdef TRT_MOE_WITH_CUDA
  static const ForkMark first_used;  // CUDA does not survive a fork
  first_used.expect_not_forked();
#else
  throw Error(ErrorKind::kDevice,
              "this build of trt-moe has no CUDA backend: no nvcc was found when it was built. `trt-moe doctor` says "
              "how to add it; device=\"cpu\" needs none");
#endif
}

}  // namespace

std::shared_ptr<cuda::StreamDevice> open_cuda_device([[maybe_unused]] int ordinal) {
  expect_cuda();
#ifdef TRT_MOE_WITH_CUDA
  return cuda::open_device(ordinal);
#else
  return nullptr;
#endif
}

std::string cuda_compute_capability([[maybe_unused]] int ordinal) {
  expect_cuda();
#ifdef TRT_MOE_WITH_CUDA
  return cuda::compute_capability(ordinal);
#else
  return "";
#endif
}

}  // namespace trt_moe
