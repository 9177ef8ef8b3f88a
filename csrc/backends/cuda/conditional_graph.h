#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backends/cuda/cuda_owners.h"
#include "backends/cuda/plan/routed_graph.h"

namespace trt_moe::cuda {

// A device-routed graph as CUDA's graph. It holds clones of the captured graphs, and may be instantiated once.
class ConditionalGraph {
 public:
  // Throws Error(kDevice) where a kernel has no room for so much, or CUDA refuses a node.
  ConditionalGraph(std::shared_ptr<PrimaryContext> context, const RoutedGraph& routed);

  // Throws Error(kDevice) that names the node which CUDA objects to.
  GraphExecOwner instantiate() const;

 private:
  std::string name_of(cudaGraphNode_t node) const;

  GraphOwner graph_;
  std::vector<Node> topology_;
  std::vector<cudaGraphNode_t> nodes_;  // of the topology, in its order
};

}  // namespace trt_moe::cuda
