#include "backends/cuda/plan/arena_plan.h"

#include "backends/cuda/plan/align.h"
#include "backends/cuda/plan/routed_graph.h"

namespace trt_moe::cuda {

ArenaPlan arena_plan(std::size_t largest_bucket, std::size_t image_bytes, std::size_t outputs) {
  ArenaPlan plan;
  // As a gater the model has one output an expert.
  plan.input = routed_layout(largest_bucket, outputs, 0, image_bytes).images;
  plan.output = plan.input + aligned(largest_bucket * image_bytes);
  plan.bytes = plan.output + aligned(largest_bucket * outputs * sizeof(float));
  return plan;
}

}  // namespace trt_moe::cuda
