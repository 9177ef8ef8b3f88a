#pragma once

#include <memory>
#include <mutex>

#include "backends/cuda/cuda_owners.h"
#include "backends/cuda/stream_device.h"

namespace trt_moe::cuda {

class CudaGraph final : public Graph {
 public:
  explicit CudaGraph(GraphOwner graph);
  const NodeHistogram& nodes() const noexcept override { return nodes_; }
  cudaGraph_t get() const noexcept { return graph_.get(); }

 private:
  GraphOwner graph_;
  NodeHistogram nodes_;
};

// A GPU, on CUDA's runtime.
class CudaDevice final : public StreamDevice {
 public:
  explicit CudaDevice(int ordinal);

  const DeviceInfo& info() const noexcept override { return info_; }
  bool usable() const noexcept override { return context_->usable(); }
  std::unique_ptr<Buffer> allocate(MemoryKind kind, std::size_t bytes) override;
  bool holds(std::uintptr_t address) const override;
  std::unique_ptr<Stream> open_stream() override;
  std::unique_ptr<GraphExec> instantiate(const Graph& graph) override;
  std::unique_ptr<GraphExec> instantiate(const RoutedGraph& routed) override;

 private:
  std::shared_ptr<PrimaryContext> context_;
  DeviceInfo info_;
  bool early_ = false;  // whether the gater's kernels begin before the one ahead has ended
  std::mutex graphs_;   // CUDA's graph objects are not thread-safe, and a captured one goes into many others
};

}  // namespace trt_moe::cuda
