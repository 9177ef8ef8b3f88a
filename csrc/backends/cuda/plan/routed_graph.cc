#include "backends/cuda/plan/routed_graph.h"

#include "backends/cuda/plan/align.h"

namespace trt_moe::cuda {

RoutedLayout routed_layout(std::size_t capacity, std::size_t experts, std::size_t classes, std::size_t image_bytes) {
  RoutedLayout layout;
  layout.weight = aligned(sizeof(std::int32_t));
  layout.costs = layout.weight + aligned(sizeof(float));
  layout.images = layout.costs + aligned(experts * sizeof(float));
  layout.in_bytes = layout.images + capacity * image_bytes;
  layout.gater_logits = aligned(capacity * sizeof(std::int32_t));
  layout.probabilities = layout.gater_logits + aligned(capacity * experts * sizeof(float));
  layout.out_bytes = layout.probabilities + capacity * classes * sizeof(float);
  return layout;
}

}  // namespace trt_moe::cuda
