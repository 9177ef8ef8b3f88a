#include "backends/openvino/openvino_backend.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <mutex>
#include <openvino/openvino.hpp>

#include "core/cpus.h"
#include "core/error.h"

namespace trt_moe {

namespace {

// Larger models, and batches of more pixels, gain nothing on a CPU; and each bucket holds a copy of the weights, and of
// what the layers compute for each worker.
constexpr std::size_t kBatchedModelBytes = std::size_t{16} << 20;
constexpr std::size_t kBatchBytes = std::size_t{512} << 10;
constexpr std::size_t kLargestBatch = 16;

std::vector<std::size_t> default_buckets(std::size_t model_bytes, std::size_t image_bytes) {
  std::vector<std::size_t> buckets{1};
  if (model_bytes >= kBatchedModelBytes) return buckets;
  for (std::size_t bucket = 2; bucket <= kLargestBatch && bucket * image_bytes <= kBatchBytes; bucket *= 2) {
    buckets.push_back(bucket);
  }
  return buckets;
}

// All threads must beat one by this factor: they take CPUs that other images could use.
constexpr double kWorthMoreThreads = 1.05;

std::string first_line(const std::string& message) { return message.substr(0, message.find('\n')); }

Error build_error(const std::string& what) {
  return {ErrorKind::kEngineBuild, "OpenVINO cannot compile the model: " + what};
}

class OpenVinoSession final : public Session {
 public:
  // requests: one a bucket, ascending; they share the memory of the largest one's input.
  OpenVinoSession(std::map<std::size_t, ov::InferRequest> requests, const EngineInfo& info)
      : requests_(std::move(requests)), outputs_(info.outputs) {
    const std::size_t largest = requests_.rbegin()->first;
    input_ = ov::Tensor(ov::element::u8, {largest, info.input.height, info.input.width, info.input.channels});
    std::fill_n(input_.data<std::uint8_t>(), input_.get_byte_size(), std::uint8_t{0});
    for (auto& [bucket, request] : requests_) {
      request.set_input_tensor(ov::Tensor(
          ov::element::u8, {bucket, info.input.height, info.input.width, info.input.channels}, input_.data()));
    }
  }

  std::span<std::uint8_t> input() override { return {input_.data<std::uint8_t>(), input_.get_byte_size()}; }

  std::span<const float> run(std::size_t images) override {
    ov::InferRequest& request = requests_.at(images);
    try {
      request.infer();
    } catch (const std::exception& error) {
      throw Error(ErrorKind::kDevice, "OpenVINO failed while it ran the model: " + first_line(error.what()));
    }
    return {request.get_output_tensor().data<const float>(), images * outputs_};
  }

 private:
  std::map<std::size_t, ov::InferRequest> requests_;
  std::size_t outputs_;
  ov::Tensor input_;
};

class OpenVinoEngine final : public Engine {
 public:
  OpenVinoEngine(ov::CompiledModel latency, std::map<std::size_t, ov::CompiledModel> throughput, EngineInfo info)
      : latency_(std::move(latency)), throughput_(std::move(throughput)), info_(std::move(info)) {}

  const EngineInfo& info() const override { return info_; }

  std::unique_ptr<Session> open(Lane lane) override {
    std::map<std::size_t, ov::InferRequest> requests;
    if (lane == Lane::kLatency) {
      requests.emplace(1, latency_.create_infer_request());
    } else {
      for (auto& [bucket, model] : throughput_) requests.emplace(bucket, model.create_infer_request());
    }
    return std::make_unique<OpenVinoSession>(std::move(requests), info_);
  }

 private:
  ov::CompiledModel latency_;
  std::map<std::size_t, ov::CompiledModel> throughput_;
  EngineInfo info_;
};

struct ModelShape {
  ImageShape input;
  std::size_t outputs = 0;
};

ModelShape check_model(const std::shared_ptr<ov::Model>& model) {
  if (model->inputs().size() != 1 || model->outputs().size() != 1) {
    throw build_error("it has " + std::to_string(model->inputs().size()) + " inputs and " +
                      std::to_string(model->outputs().size()) + " outputs; expected one of each");
  }
  const ov::PartialShape in = model->input().get_partial_shape();
  const ov::PartialShape out = model->output().get_partial_shape();
  const bool in_ok = model->input().get_element_type() == ov::element::u8 && in.rank() == 4 && in[1].is_static() &&
                     in[2].is_static() && in[3].is_static() && in[0].is_dynamic();
  if (!in_ok) {
    throw build_error("its input is " + model->input().get_element_type().get_type_name() + " " + in.to_string() +
                      "; expected uint8 [?,height,width,channels]. `trt-moe pack` wraps a float NCHW model");
  }
  const bool out_ok = model->output().get_element_type() == ov::element::f32 && out.rank() == 2 && out[1].is_static();
  if (!out_ok) {
    throw build_error("its output is " + model->output().get_element_type().get_type_name() + " " + out.to_string() +
                      "; expected float32 [?,logits]");
  }
  const auto length = [](const ov::Dimension& dimension) { return static_cast<std::size_t>(dimension.get_length()); };
  return {{length(in[1]), length(in[2]), length(in[3])}, length(out[1])};
}

// Other models run between two images of this one, so it starts with cold caches and with threads that sleep.
class CacheSweep {
 public:
  void operator()() {
    for (std::size_t i = 0; i < bytes_.size(); i += kCacheLine) ++bytes_[i];
  }

 private:
  static constexpr std::size_t kCacheLine = 64;
  std::vector<std::uint8_t> bytes_ = std::vector<std::uint8_t>(std::size_t{8} << 20);
};

// First quartile of single-image inferences of each of two compiled models, in turns, each as cold as between other
// models. Not the median: right after a compilation its threads are still busy, which slows many of the first rounds.
std::pair<double, double> compare(ov::CompiledModel& first, ov::CompiledModel& second) {
  constexpr std::size_t kWarmup = 3;
  constexpr std::size_t kRounds = 41;
  // A slow model shows the difference in a few rounds, and must not hold up loading for seconds.
  constexpr std::size_t kFewestRounds = 5;
  constexpr std::chrono::milliseconds kBudget{150};
  const auto begin = std::chrono::steady_clock::now();
  CacheSweep sweep;
  ov::InferRequest requests[] = {first.create_infer_request(), second.create_infer_request()};
  std::vector<double> seconds[2];
  for (std::size_t round = 0; round < kWarmup + kRounds; ++round) {
    if (seconds[0].size() >= kFewestRounds && std::chrono::steady_clock::now() - begin > kBudget) break;
    for (std::size_t which : {0, 1}) {
      sweep();
      const auto start = std::chrono::steady_clock::now();
      requests[which].infer();
      const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
      if (round >= kWarmup) seconds[which].push_back(elapsed.count());
    }
  }
  const std::size_t quartile = seconds[0].size() / 4;
  for (auto& values : seconds)
    std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(quartile), values.end());
  return {seconds[0][quartile], seconds[1][quartile]};
}

// With one stream a run is on the caller's thread, with several it is handed over to a thread of OpenVINO's.
ov::AnyMap properties(const EngineOptions& options, std::size_t threads, std::size_t streams) {
  ov::AnyMap map{ov::inference_num_threads(static_cast<int>(threads)), ov::num_streams(static_cast<int>(streams)),
                 // Several compiled models run at once here; pinned, they would all sit on the same cores.
                 ov::hint::enable_cpu_pinning(false)};
  if (options.precision == "fp32") map.insert(ov::hint::inference_precision(ov::element::f32));
  if (options.precision == "bf16") map.insert(ov::hint::inference_precision(ov::element::bf16));
  if (options.precision == "fp16") map.insert(ov::hint::inference_precision(ov::element::f16));
  if (!options.cache_dir.empty()) map.insert(ov::cache_dir(options.cache_dir));
  return map;
}

std::string precision_name(const ov::element::Type& type) {
  if (type == ov::element::bf16) return "bf16";
  return type == ov::element::f16 ? "fp16" : "fp32";
}

class OpenVinoBackend final : public Backend {
 public:
  std::shared_ptr<Engine> load(const std::string& onnx, const EngineOptions& options) override {
    const std::vector<std::string> known{"auto", "fp32", "bf16", "fp16"};
    if (std::find(known.begin(), known.end(), options.precision) == known.end()) {
      throw Error(ErrorKind::kInput, "precision is '" + options.precision + "'; expected auto, fp32, bf16 or fp16");
    }
    const std::size_t cpus = usable_cpus();
    if (options.threads > cpus) {
      throw Error(ErrorKind::kInput, "threads is " + std::to_string(options.threads) + ", but this process may use " +
                                         std::to_string(cpus) +
                                         " CPUs; pass at most that, or leave it out for all of them");
    }
    const std::size_t threads = options.threads == 0 ? cpus : options.threads;
    // OpenVINO sets the process's locale while it compiles, and then what it was before: of two at once, the second
    // would find the first one's.
    const std::lock_guard one_at_a_time(compiling_);
    try {
      const std::shared_ptr<ov::Model> model = core_.read_model(onnx, ov::Tensor());
      const ModelShape shape = check_model(model);
      Buckets buckets(options.buckets.empty() ? default_buckets(onnx.size(), shape.input.bytes()) : options.buckets);
      const auto compile = [&](std::size_t batch, std::size_t for_threads, std::size_t streams) {
        const std::shared_ptr<ov::Model> sized = model->clone();
        sized->reshape(ov::PartialShape{static_cast<std::int64_t>(batch), static_cast<std::int64_t>(shape.input.height),
                                        static_cast<std::int64_t>(shape.input.width),
                                        static_cast<std::int64_t>(shape.input.channels)});
        // The logits are read on trust.
        const ov::PartialShape logits = sized->output().get_partial_shape();
        const ov::Shape expected{batch, shape.outputs};
        if (logits.is_dynamic() || logits.to_shape() != expected) {
          throw build_error("of a batch of " + std::to_string(batch) + " it gives " + logits.to_string() +
                            "; expected " + ov::PartialShape(expected).to_string());
        }
        return core_.compile_model(sized, "CPU", properties(options, for_threads, streams));
      };
      std::map<std::size_t, ov::CompiledModel> throughput;
      for (const std::size_t bucket : buckets.sizes()) throughput.emplace(bucket, compile(bucket, threads, threads));
      ov::CompiledModel latency = threads == 1 ? throughput.at(1) : compile(1, 1, 1);
      if (threads > 1) {
        // A small model loses more by waking other threads than they help it.
        ov::CompiledModel shared = compile(1, threads, 1);
        const auto [all_threads, one_thread] = compare(shared, latency);
        if (one_thread > kWorthMoreThreads * all_threads) latency = shared;
      }
      const std::string precision = precision_name(latency.get_property(ov::hint::inference_precision));
      if (options.precision != "auto" && precision != options.precision) {
        throw Error(ErrorKind::kEngineBuild, "precision " + options.precision +
                                                 " was asked for, but this CPU computes in " + precision +
                                                 "; use precision=\"auto\" or \"" + precision + "\"");
      }
      EngineInfo info{
          shape.input, shape.outputs,
          precision,   cpu_name() + ", " + std::to_string(threads) + (threads == 1 ? " thread" : " threads"),
          threads,     std::move(buckets),
          true};
      return std::make_shared<OpenVinoEngine>(std::move(latency), std::move(throughput), std::move(info));
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {
      throw build_error(first_line(error.what()));
    }
  }

 private:
  ov::Core core_;
  std::mutex compiling_;
};

}  // namespace

std::shared_ptr<Backend> make_openvino_backend() {
  // Never destroyed: at exit, OpenVINO's own statics may be gone before ours.
  static const auto* const backend = new std::shared_ptr<Backend>(std::make_shared<OpenVinoBackend>());
  return *backend;
}

}  // namespace trt_moe
