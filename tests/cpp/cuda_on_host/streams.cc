// Streams, events, captures, and what is enqueued.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "fibers.h"
#include "runtime.h"

namespace on_host {

namespace {

thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

}  // namespace

std::mutex captures_mutex;
std::vector<CUstream_st*> capturing;

cudaError_t enter_beside_captures() {
  if (const cudaError_t status = enter(); status != cudaSuccess) return status;
  if (thread_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  const std::lock_guard lock(captures_mutex);
  bool forbidden = false;
  for (CUstream_st* const stream : capturing) {
    const bool mine = stream->capture->thread == std::this_thread::get_id();
    const cudaStreamCaptureMode mode = stream->capture->mode;
    if (mine ? mode == cudaStreamCaptureModeRelaxed
             : mode != cudaStreamCaptureModeGlobal || thread_mode != cudaStreamCaptureModeGlobal) {
      continue;
    }
    stream->capture->valid = false;
    forbidden = true;
  }
  return forbidden ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

void Mark::set() {
  const std::lock_guard lock(mutex_);
  set_ = true;
  changed_.notify_all();
}

void Mark::wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return set_; });
}

CUstream_st& stream_of(cudaStream_t handle) {
  if (handle == nullptr || handle == cudaStreamLegacy) {
    static CUstream_st& legacy = *new CUstream_st;
    return legacy;
  }
  if (handle == cudaStreamPerThread) {
    thread_local CUstream_st of_thread;
    return of_thread;
  }
  return *handle;
}

std::unique_ptr<CUgraphNode_st> copy_node(void* to, const void* from, std::size_t bytes) {
  auto node = std::make_unique<CUgraphNode_st>();
  node->type = cudaGraphNodeTypeMemcpy;
  node->copy.srcPtr.ptr = const_cast<void*>(from);
  node->copy.dstPtr.ptr = to;
  const bool to_device = memory_of(to) == Memory::kDevice;
  const bool from_device = memory_of(from) == Memory::kDevice;
  node->copy.kind = from_device ? (to_device ? cudaMemcpyDeviceToDevice : cudaMemcpyDeviceToHost)
                                : (to_device ? cudaMemcpyHostToDevice : cudaMemcpyHostToHost);
  node->work = [=] { std::memcpy(to, from, bytes); };
  return node;
}

std::unique_ptr<CUgraphNode_st> kernel_node(const void* kernel, dim3 grid, dim3 threads, void** arguments) {
  constexpr unsigned kMostThreads = 1024;
  constexpr unsigned kMostRows = 65535;
  if (grid.x == 0 || grid.y == 0 || grid.y > kMostRows || grid.z != 1) return nullptr;
  if (threads.x == 0 || threads.x > kMostThreads || threads.y != 1 || threads.z != 1) return nullptr;
  auto node = std::make_unique<CUgraphNode_st>();
  node->type = cudaGraphNodeTypeKernel;
  node->work = bind(kernel, grid, threads, arguments);
  return node->work ? std::move(node) : nullptr;
}

cudaError_t submit(cudaStream_t handle, std::unique_ptr<CUgraphNode_st> node) {
  if (const cudaError_t status = enter(); status != cudaSuccess) return status;
  CUstream_st& stream = stream_of(handle);
  {
    const std::lock_guard lock(captures_mutex);
    if (stream.capture) {
      if (!stream.capture->valid) return cudaErrorStreamCaptureInvalidated;
      stream.capture->add(std::move(node));
      return cudaSuccess;
    }
  }
  stream.enqueue([work = std::move(node->work)] {
    if (loss() == cudaSuccess) work();
  });
  return cudaSuccess;
}

namespace {

// In a capture it would fork it or join it, which nothing here does.
cudaError_t submit_event(cudaStream_t handle, Work work) {
  CUstream_st& stream = stream_of(handle);
  {
    const std::lock_guard lock(captures_mutex);
    if (stream.capture) return cudaErrorNotSupported;
  }
  stream.enqueue(std::move(work));
  return cudaSuccess;
}

}  // namespace

}  // namespace on_host

using namespace on_host;

CUstream_st::CUstream_st() : thread_([this] { run(); }) {}

CUstream_st::~CUstream_st() {
  {
    const std::lock_guard lock(mutex_);
    if ((busy_ || !queue_.empty()) && loss() == cudaSuccess) {
      // CUDA would go on with it, on memory that may be gone by then.
      std::fputs("a stream is destroyed before its work has ended\n", stderr);
      std::abort();
    }
    ends_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void CUstream_st::enqueue(Work work) {
  const std::lock_guard lock(mutex_);
  queue_.push_back(std::move(work));
  changed_.notify_all();
}

void CUstream_st::drain() {
  Mark done;
  enqueue([&] { done.set(); });
  done.wait();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !busy_ || !queue_.empty(); });
}

void CUstream_st::run() {
  for (;;) {
    Work work;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return ends_ || !queue_.empty(); });
      if (queue_.empty()) return;
      work = std::move(queue_.front());
      queue_.pop_front();
      busy_ = true;
    }
    // Late now and then, so that what nobody waited for is not there yet.
    if (roll(8) == 0) std::this_thread::sleep_for(std::chrono::microseconds(roll(50)));
    work();
    const std::lock_guard lock(mutex_);
    busy_ = false;
    changed_.notify_all();
  }
}

void CUstream_st::Capture::add(std::unique_ptr<CUgraphNode_st> node) {
  std::vector<std::size_t> after;
  if (!graph->nodes.empty()) after.push_back(graph->nodes.size() - 1);
  graph->add(std::move(node), std::move(after));
}

extern "C" {

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  // Such a copy would wait, or be staged, and nothing here may make one.
  if (memory_of(to) == Memory::kPageable || memory_of(from) == Memory::kPageable) return answer(cudaErrorNotSupported);
  return answer(submit(stream, copy_node(to, from, bytes)));
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void** arguments) {
  auto node = kernel_node(kernel, config->gridDim, config->blockDim, arguments);
  if (!node) return answer(knows(kernel) ? cudaErrorInvalidConfiguration : cudaErrorInvalidDeviceFunction);
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config->attrs[i];
    if (attribute.id != cudaLaunchAttributeProgrammaticStreamSerialization || kComputeMajor < 9) {
      return answer(cudaErrorNotSupported);
    }
    node->early = attribute.val.programmaticStreamSerializationAllowed != 0;
    node->work = [work = std::move(node->work)] { run_early(work); };
  }
  return answer(submit(config->stream, std::move(node)));
}

cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 threads, void** arguments, std::size_t,
                             cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = threads;
  config.stream = stream;
  return cudaLaunchKernelExC(&config, kernel, arguments);
}

// A kernel that is a function of the host's, for tests in Python.
__attribute__((visibility("default"))) cudaError_t on_host_launch(cudaStream_t stream, void (*function)(void*),
                                                                  void* argument) {
  auto node = std::make_unique<CUgraphNode_st>();
  node->type = cudaGraphNodeTypeKernel;
  node->work = [=] { function(argument); };
  return answer(submit(stream, std::move(node)));
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  if (const cudaError_t status = enter_beside_captures(); status != cudaSuccess) return answer(status);
  if (flags != cudaStreamNonBlocking) return answer(cudaErrorNotSupported);
  *stream = new CUstream_st;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  if (const cudaError_t status = enter(); status != cudaSuccess && loss() == cudaSuccess) return answer(status);
  delete stream;
  return loss();
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  if (const cudaError_t status = enter(); status != cudaSuccess) return answer(status);
  CUstream_st& stream = stream_of(handle);
  {
    const std::lock_guard lock(captures_mutex);
    if (stream.capture) {
      stream.capture->valid = false;
      return answer(cudaErrorStreamCaptureUnsupported);
    }
  }
  stream.drain();
  return answer(loss());
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  if (const cudaError_t status = enter(); status != cudaSuccess) return answer(status);
  *event = new CUevent_st;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return loss();
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  if (const cudaError_t status = enter(); status != cudaSuccess) return answer(status);
  auto mark = std::make_shared<Mark>();
  const cudaError_t status = submit_event(handle, [mark] { mark->set(); });
  if (status == cudaSuccess) {
    const std::lock_guard lock(event->mutex);
    event->mark = mark;
  }
  return answer(status);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
  if (const cudaError_t status = enter(); status != cudaSuccess) return answer(status);
  std::shared_ptr<Mark> mark;
  {
    const std::lock_guard lock(event->mutex);
    mark = event->mark;
  }
  if (mark == nullptr) return cudaSuccess;
  return answer(submit_event(handle, [mark] { mark->wait(); }));
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, thread_mode);
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const std::lock_guard lock(captures_mutex);
  const auto& capture = stream_of(stream).capture;
  *status = !capture         ? cudaStreamCaptureStatusNone
            : capture->valid ? cudaStreamCaptureStatusActive
                             : cudaStreamCaptureStatusInvalidated;
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  if (const cudaError_t status = enter(); status != cudaSuccess) return answer(status);
  const std::lock_guard lock(captures_mutex);
  CUstream_st& stream = stream_of(handle);
  if (&stream == &stream_of(nullptr)) return answer(cudaErrorStreamCaptureUnsupported);
  if (stream.capture) return answer(cudaErrorIllegalState);
  stream.capture = std::make_unique<CUstream_st::Capture>();
  stream.capture->mode = mode;
  stream.capture->thread = std::this_thread::get_id();
  capturing.push_back(&stream);
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  *graph = nullptr;
  const std::lock_guard lock(captures_mutex);
  CUstream_st& stream = stream_of(handle);
  if (!stream.capture) return answer(cudaErrorIllegalState);
  if (stream.capture->mode != cudaStreamCaptureModeRelaxed && stream.capture->thread != std::this_thread::get_id()) {
    return answer(cudaErrorStreamCaptureWrongThread);
  }
  const auto ended = std::move(stream.capture);
  capturing.erase(std::find(capturing.begin(), capturing.end(), &stream));
  if (const cudaError_t status = enter(); status != cudaSuccess) return answer(status);
  if (!ended->valid) return answer(cudaErrorStreamCaptureInvalidated);
  *graph = ended->graph.release();
  return cudaSuccess;
}

}  // extern "C"
