#include "bindings/bindings.h"

PYBIND11_MODULE(_core, module) {
  module.doc() = "The C++ core of trt-moe: routing, batching and engine execution.";
  trt_moe::register_errors(module);
  trt_moe::register_system(module);
  trt_moe::register_routing(module);
  trt_moe::register_model(module);
  trt_moe::register_dlpack(module);
  trt_moe::register_call_times(module);
  trt_moe::register_pipeline(module);
  trt_moe::register_cuda(module);
  trt_moe::register_cuda_plan(module);
}
