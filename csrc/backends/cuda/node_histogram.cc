#include "backends/cuda/node_histogram.h"

#include <array>
#include <vector>

namespace trt_moe::cuda {

namespace {

// By the number of the type. 12 has no name in the runtime, only in the driver.
constexpr std::array kNames{"kernel",   "memcpy",    "memset",      "host",         "graph",
                            "empty",    "waitEvent", "eventRecord", "extSemSignal", "extSemWait",
                            "memAlloc", "memFree",   "batchMemOp",  "conditional"};

// Attributes and parameters can be read of most nodes, but of none need they be.
bool readable(cudaError_t status) {
  if (status == cudaSuccess) return true;
  cudaGetLastError();
  return false;
}

bool is_pageable(const void* address) {
  cudaPointerAttributes attributes{};
  return address != nullptr && readable(cudaPointerGetAttributes(&attributes, address)) &&
         attributes.type == cudaMemoryTypeUnregistered;
}

void add_details(cudaGraphNode_t node, cudaGraphNodeType type, NodeHistogram& nodes) {
  if (type == cudaGraphNodeTypeKernel) {
    cudaLaunchAttributeValue value{};
    if (readable(cudaGraphKernelNodeGetAttribute(node, cudaLaunchAttributeCooperative, &value)) && value.cooperative) {
      ++nodes["cooperativeKernel"];
    }
  } else if (type == cudaGraphNodeTypeMemcpy) {
    cudaMemcpy3DParms copy{};
    if (!readable(cudaGraphMemcpyNodeGetParams(node, &copy))) return;
    if (copy.kind == cudaMemcpyHostToDevice) ++nodes["memcpyHostToDevice"];
    if (copy.kind == cudaMemcpyDeviceToHost) ++nodes["memcpyDeviceToHost"];
    if (is_pageable(copy.srcPtr.ptr) || is_pageable(copy.dstPtr.ptr)) ++nodes["memcpyPageable"];
  }
}

void add_nodes(const ContextScope& scope, cudaGraph_t graph, NodeHistogram& nodes) {
  std::size_t count = 0;
  TRT_MOE_CUDA_CHECK(scope, cudaGraphGetNodes(graph, nullptr, &count));
  std::vector<cudaGraphNode_t> all(count);
  if (count > 0) TRT_MOE_CUDA_CHECK(scope, cudaGraphGetNodes(graph, all.data(), &count));
  for (const cudaGraphNode_t node : all) {
    cudaGraphNodeType type{};
    TRT_MOE_CUDA_CHECK(scope, cudaGraphNodeGetType(node, &type));
    const auto number = static_cast<std::size_t>(type);
    ++nodes[number < kNames.size() ? kNames[number] : "other"];
    add_details(node, type, nodes);
    if (type == cudaGraphNodeTypeGraph) {
      cudaGraph_t child = nullptr;  // the node's own
      TRT_MOE_CUDA_CHECK(scope, cudaGraphChildGraphNodeGetGraph(node, &child));
      add_nodes(scope, child, nodes);
    }
  }
}

}  // namespace

NodeHistogram node_histogram(const ContextScope& scope, cudaGraph_t graph) {
  NodeHistogram nodes;
  add_nodes(scope, graph, nodes);
  return nodes;
}

}  // namespace trt_moe::cuda
