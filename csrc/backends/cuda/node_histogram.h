#pragma once

#include "backends/cuda/primary_context.h"
#include "backends/cuda/stream_device.h"

namespace trt_moe::cuda {

// The kinds are those of cudaGraphNodeType: "kernel", "memcpy", "memset", "host", "graph", "empty", "waitEvent",
// "eventRecord", "extSemSignal", "extSemWait", "memAlloc", "memFree", "batchMemOp", "conditional", "other".
// Counted again: "memcpyHostToDevice", "memcpyDeviceToHost", "memcpyPageable" (a host address that is not pinned,
// which no conditional body takes), "cooperativeKernel".
NodeHistogram node_histogram(const ContextScope& scope, cudaGraph_t graph);

}  // namespace trt_moe::cuda
