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
  std::string precision;     // "fp32", "bf16" or "fp16": what the device computes in
  std::string device;        // for people: "AMD EPYC, 2 threads"
  std::size_t parallel = 1;  // how many throughput sessions the device runs well side by side
  Buckets buckets{{1}};      // batch sizes of a throughput session; a latency session takes one image
};

// One thread at a time uses a session. It owns its buffers for as long as it lives.
class Session {
 public:
  virtual ~Session() = default;
  virtual std::span<std::uint8_t> input() = 0;  // room for the largest bucket, uint8 NHWC
  virtual std::span<const float> run(
      std::size_t images) = 0;  // `images` is one of the buckets -> [images * outputs] logits
};

// A model compiled for one device. Thread-safe.
class Engine {
 public:
  virtual ~Engine() = default;
  virtual const EngineInfo& info() const = 0;
  virtual std::unique_ptr<Session> open(Lane lane) = 0;
};

struct EngineOptions {
  std::string precision = "auto";    // "auto", "fp32", "bf16" or "fp16"
  std::size_t threads = 0;           // 0: every CPU this process may use
  std::string cache_dir;             // "": compiled engines are not kept
  std::vector<std::size_t> buckets;  // empty: the backend chooses by the model's size
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
