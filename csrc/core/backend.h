#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/buckets.h"
#include "core/tensor_view.h"

namespace trt_moe {

// What a session is tuned for: one image as fast as the whole device allows, or one of several sessions
// that run side by side. Both give bit-identical logits.
enum class Lane { kLatency, kThroughput };

struct EngineInfo {
  ImageShape input;
  std::size_t outputs = 0;   // logits per image
  std::string precision;     // "fp32", "bf16", "fp16" or "int8": what the device computes in
  std::string device;        // for people: "AMD EPYC, 2 threads"
  std::size_t parallel = 1;  // how many throughput sessions the device runs well side by side
  Buckets buckets{{1}};      // batch sizes of a throughput session; a latency session takes one image
  bool on_host = false;      // it computes on the host's CPUs
};

// One thread at a time uses a session. It owns its buffers for as long as it lives.
class Session {
 public:
  virtual ~Session() = default;
  virtual std::span<std::uint8_t> input() = 0;  // room for the largest bucket, uint8 NHWC
  // images: one of the buckets, or where batches are padded any number up to the largest -> [images * outputs] logits
  virtual std::span<const float> run(std::size_t images) = 0;
};

// A session of a device that works while the host goes on.
class OverlappingSession : public Session {
 public:
  // run, in two parts: after `start` the input must stay as it is until `finish`, which must follow.
  virtual void start(std::size_t images) = 0;
  virtual std::span<const float> finish() = 0;
};

// A model compiled for one device. Thread-safe.
class Engine {
 public:
  virtual ~Engine() = default;
  virtual const EngineInfo& info() const = 0;
  virtual std::unique_ptr<Session> open(Lane lane) = 0;
};

// Answers of one run of a routed plan, one row an image.
struct RoutedRows {
  std::span<const std::int32_t> routes;  // -1: a gater logit is not finite
  std::span<const float> gater_logits;   // [images * experts]
  std::span<const float> probabilities;  // [images * classes]; NaN where an expert's logit is not finite
};

// How a routed plan is to answer some images.
struct RoutedCall {
  std::span<const float> costs;      // of the experts, for choose_route
  float latency_weight = 0.0F;       // the same
  const DeviceRows* keep = nullptr;  // where the answers are written on the device as well, before run returns
  bool alone = true;                 // nothing else is under way: work that may prove needless harms nobody
};

// A gater and its experts as one piece of work, whose routes never leave the device. One thread at a time runs it.
class RoutedPlan {
 public:
  virtual ~RoutedPlan() = default;
  virtual std::size_t capacity() const = 0;  // most images of one run
  // Routes as choose_route does. The rows are good until the next run.
  virtual RoutedRows run(ImageBatchView images, const RoutedCall& call) = 0;
  virtual RoutedRows run(const DeviceImages& images, const RoutedCall& call) = 0;
};

struct EngineOptions {
  std::string precision = "auto";    // "auto", "fp32", "bf16" or "fp16"
  std::size_t threads = 0;           // 0: every CPU this process may use
  std::string cache_dir;             // "": compiled engines are not kept
  std::vector<std::size_t> buckets;  // empty: the backend chooses, by the model's and its images' size
};

// What runs engines on one kind of device.
class Backend {
 public:
  virtual ~Backend() = default;
  // onnx: the bytes of a model that takes uint8 NHWC images and gives float32 logits.
  // Throws Error(kEngineBuild) when it cannot be compiled, Error(kInput) on an option it does not know.
  virtual std::shared_ptr<Engine> load(const std::string& onnx, const EngineOptions& options) = 0;
};

}  // namespace trt_moe
