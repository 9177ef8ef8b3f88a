#include "backends/cuda/model_capture.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "backends/cuda/on_device.h"
#include "core/error.h"

namespace trt_moe::cuda {

ModelCapture::ModelCapture(std::shared_ptr<StreamDevice> device, CaptureSpec spec)
    : device_(std::move(device)), spec_(std::move(spec)), buckets_(spec_.buckets, Batching::kPadded) {
  if (spec_.input.bytes() == 0 || spec_.outputs == 0) {
    throw Error(ErrorKind::kInput, "model " + spec_.name + " has images of " + std::to_string(spec_.input.bytes()) +
                                       " bytes and " + std::to_string(spec_.outputs) +
                                       " outputs; expected at least one of each");
  }
  stream_ = on_device(*device_, spec_.name, [&] { return device_->open_stream(); });
  memory_.emplace(*device_, spec_.name, arena_plan(buckets_.largest(), spec_.input.bytes(), spec_.outputs));
  captured_.resize(spec_.buckets.size());
}

ModelCapture::~ModelCapture() { discard(); }

void ModelCapture::expect_unfinished() const {
  if (!memory_) throw Error(ErrorKind::kInput, "model " + spec_.name + " is finished; start another capture for it");
}

std::uintptr_t ModelCapture::stream() const {
  expect_unfinished();
  return stream_->handle();
}

const ModelMemory& ModelCapture::memory() const {
  expect_unfinished();
  return *memory_;
}

void ModelCapture::synchronize() {
  expect_unfinished();
  on_device(*device_, spec_.name, [&] { stream_->synchronize(); });
}

std::uintptr_t ModelCapture::reserve_activation(std::size_t bytes) {
  expect_unfinished();
  if (reserved_) {
    throw Error(ErrorKind::kInput, "the activation memory of model " + spec_.name +
                                       " is reserved already; reserve once, for the largest batch size");
  }
  const std::uintptr_t address = memory_->reserve_activation(*device_, spec_.name, bytes);
  reserved_ = true;
  return address;
}

void ModelCapture::hold_gater(GaterNet net, std::span<const float> weights) {
  net.images = spec_.input;
  net.experts = spec_.outputs;
  check_gater(net, buckets_.largest());
  if (weights.size() != gater_weights(net)) {
    throw Error(ErrorKind::kInput, "model " + spec_.name + " has " + std::to_string(weights.size()) +
                                       " weights; expected " + std::to_string(gater_weights(net)) + " for images of " +
                                       std::to_string(net.images.channels) + " channels and " +
                                       std::to_string(net.experts) + " experts");
  }
  gater_block_ = reserve_activation(gater_bytes(net, buckets_.largest()));
  const std::size_t bytes = gater_bytes_to_write(net, buckets_.largest());
  const auto staging = allocate_for(*device_, spec_.name, MemoryKind::kPinned, bytes);
  std::memset(staging->host(), 0, bytes);
  std::memcpy(staging->host(), weights.data(), weights.size_bytes());
  on_device(*device_, spec_.name, [&] {
    stream_->copy(gater_block_, reinterpret_cast<std::uintptr_t>(staging->host()), bytes);
    stream_->synchronize();
  });
  gater_ = net;
}

void ModelCapture::enqueue_gater(std::size_t bucket) {
  expect_unfinished();
  if (!gater_) throw Error(ErrorKind::kInput, "model " + spec_.name + " holds no gater");
  if (bucket == 0 || bucket > buckets_.largest()) {
    throw Error(ErrorKind::kInput, "model " + spec_.name + " has no batch size " + std::to_string(bucket));
  }
  const GaterRun run =
      gater_run(*gater_, buckets_.largest(), gater_block_, memory_->input(), memory_->output(), bucket);
  on_device(*device_, spec_.name, [&] { stream_->run_gater(run); });
}

Error ModelCapture::refused(std::size_t bucket, const std::string& why) const {
  return {ErrorKind::kEngineBuild,
          "cannot be captured at batch size " + std::to_string(spec_.buckets[bucket]) + ": " + why};
}

void ModelCapture::begin(std::size_t bucket) {
  expect_unfinished();
  const auto place = std::find(spec_.buckets.begin(), spec_.buckets.end(), bucket);
  if (place == spec_.buckets.end()) {
    throw Error(ErrorKind::kInput, "model " + spec_.name + " has no batch size " + std::to_string(bucket));
  }
  if (capturing_) {
    throw Error(ErrorKind::kInput, "model " + spec_.name + " is being captured at batch size " +
                                       std::to_string(spec_.buckets[*capturing_]) + "; end or discard that first");
  }
  on_device(*device_, spec_.name, [&] { stream_->begin_capture(); });
  capturing_ = static_cast<std::size_t>(place - spec_.buckets.begin());
  captured_[*capturing_].graph.reset();
}

const NodeHistogram& ModelCapture::end() {
  expect_unfinished();
  if (!capturing_) throw Error(ErrorKind::kInput, "no capture of model " + spec_.name + " was begun");
  const std::size_t bucket = *std::exchange(capturing_, std::nullopt);
  on_device(*device_, spec_.name, [&] {
    try {
      captured_[bucket].graph = stream_->end_capture();
    } catch (const Error& error) {
      throw refused(bucket, error.what());
    }
  });
  return captured_[bucket].graph->nodes();
}

void ModelCapture::discard() noexcept {
  if (!std::exchange(capturing_, std::nullopt)) return;
  try {
    stream_->end_capture();
  } catch (const std::exception&) {
    // It went wrong; that is why it is discarded.
  }
}

std::shared_ptr<GraphEngine> ModelCapture::finish(std::shared_ptr<void> owner) {
  expect_unfinished();
  std::string missing;
  for (std::size_t bucket = 0; bucket < captured_.size(); ++bucket) {
    if (!captured_[bucket].graph) missing += (missing.empty() ? "" : ", ") + std::to_string(spec_.buckets[bucket]);
  }
  if (!missing.empty()) {
    throw Error(ErrorKind::kInput, "model " + spec_.name + " is not captured at batch size " + missing);
  }
  on_device(*device_, spec_.name, [&] {
    for (std::size_t bucket = 0; bucket < captured_.size(); ++bucket) {
      try {
        captured_[bucket].exec = device_->instantiate(*captured_[bucket].graph);
      } catch (const Error& error) {
        throw refused(bucket, error.what());
      }
    }
  });
  EngineInfo info{spec_.input, spec_.outputs, spec_.precision, device_->info().name, 1, buckets_};
  auto engine = std::make_shared<GraphEngine>(spec_.name, std::move(info), std::move(owner), device_,
                                              std::move(stream_), std::move(*memory_), std::move(captured_));
  memory_.reset();
  return engine;
}

}  // namespace trt_moe::cuda
