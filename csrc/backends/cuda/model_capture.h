#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backends/cuda/graph_engine.h"
#include "backends/cuda/plan/gater_net.h"
#include "backends/cuda/stream_device.h"
#include "core/backend.h"
#include "core/error.h"

namespace trt_moe::cuda {

struct CaptureSpec {
  std::string name;
  ImageShape input;
  std::size_t outputs = 0;
  std::vector<std::size_t> buckets;
  std::string precision;
};

// Makes an engine of work that somebody else enqueues on `stream`: for each bucket the caller first runs it once
// to warm up, then once more between begin and end. It reads uint8 images at `input`, writes float32 logits at
// `output` and may use the activation memory in between. One thread at a time.
class ModelCapture {
 public:
  // Throws Error(kInput) on a spec that makes no sense, Error(kDevice) where memory is short.
  ModelCapture(std::shared_ptr<StreamDevice> device, CaptureSpec spec);
  ~ModelCapture();
  ModelCapture(const ModelCapture&) = delete;
  ModelCapture& operator=(const ModelCapture&) = delete;

  const CaptureSpec& spec() const noexcept { return spec_; }
  std::uintptr_t stream() const;
  const ModelMemory& memory() const;
  void synchronize();

  // Memory for what happens between input and output, one block for all buckets; its address.
  // Throws Error(kInput) the second time.
  std::uintptr_t reserve_activation(std::size_t bytes);

  // In place of another library's work: the core's own kernels of a gater, which take the place of the activation
  // memory. Throws Error(kInput) where they do not fit the model, or there are other than gater_weights() weights.
  void hold_gater(GaterNet net, std::span<const float> weights);
  void enqueue_gater(std::size_t bucket);  // a batch size; after hold_gater

  void begin(std::size_t bucket);  // a batch size
  // What was captured. Throws Error(kEngineBuild) when it cannot be; the bucket may then be tried again.
  const NodeHistogram& end();
  // Ends a capture that went wrong, and forgets it.
  void discard() noexcept;

  // Throws Error(kInput) while a bucket is missing. Nothing else may be called afterwards. owner: see GraphEngine.
  std::shared_ptr<GraphEngine> finish(std::shared_ptr<void> owner);

 private:
  void expect_unfinished() const;
  Error refused(std::size_t bucket, const std::string& why) const;

  std::shared_ptr<StreamDevice> device_;
  CaptureSpec spec_;
  Buckets buckets_;
  std::unique_ptr<Stream> stream_;
  std::optional<ModelMemory> memory_;
  std::vector<CapturedBucket> captured_;
  std::optional<std::size_t> capturing_;  // index of the bucket
  bool reserved_ = false;
  std::optional<GaterNet> gater_;
  std::uintptr_t gater_block_ = 0;
};

}  // namespace trt_moe::cuda
