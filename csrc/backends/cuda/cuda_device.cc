#include "backends/cuda/cuda_device.h"

#include <string>
#include <utility>

#include "backends/cuda/conditional_graph.h"
#include "backends/cuda/gater_kernels.h"
#include "backends/cuda/kernels.h"
#include "backends/cuda/node_histogram.h"
#include "backends/cuda/plan/versions.h"
#include "core/error.h"

namespace trt_moe::cuda {

namespace {

class DeviceBuffer final : public Buffer {
 public:
  DeviceBuffer(DeviceMemory memory, std::size_t size) : memory_(std::move(memory)), size_(size) {}
  std::size_t size() const noexcept override { return size_; }
  std::uintptr_t device() const noexcept override { return reinterpret_cast<std::uintptr_t>(memory_.get()); }
  std::byte* host() const noexcept override { return nullptr; }

 private:
  DeviceMemory memory_;
  std::size_t size_;
};

class HostBuffer final : public Buffer {
 public:
  HostBuffer(HostMemory memory, std::size_t size) : memory_(std::move(memory)), size_(size) {}
  std::size_t size() const noexcept override { return size_; }
  std::uintptr_t device() const noexcept override { return 0; }
  std::byte* host() const noexcept override { return static_cast<std::byte*>(memory_.get()); }

 private:
  HostMemory memory_;
  std::size_t size_;
};

class CudaStream final : public Stream {
 public:
  // early: whether a kernel may begin before the one ahead of it has ended.
  CudaStream(StreamOwner stream, EventOwner event, bool early)
      : stream_(std::move(stream)), event_(std::move(event)), early_(early) {}
  ~CudaStream() override;
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  std::uintptr_t handle() const noexcept override { return reinterpret_cast<std::uintptr_t>(stream_.get()); }
  void copy(std::uintptr_t to, std::uintptr_t from, std::size_t bytes) override;
  void copy_own(std::uintptr_t to, std::uintptr_t from, std::size_t bytes) override;
  void run_gater(const GaterRun& run) override;
  void synchronize() override;
  void wait_for(std::uintptr_t other) override;
  void begin_capture() override;
  std::unique_ptr<Graph> end_capture() override;

  cudaStream_t get() const noexcept { return stream_.get(); }

 private:
  // waits_itself: for the kernel ahead of it.
  void launch(const KernelLaunch& kernel, const void* arguments, bool waits_itself);

  StreamOwner stream_;
  EventOwner event_;
  bool early_;
};

CudaStream::~CudaStream() {
  const ContextGuard guard(stream_.context());
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream_.get(), &capture) == cudaSuccess && capture != cudaStreamCaptureStatusNone) {
    GraphOwner abandoned(stream_.shared_context());
    cudaStreamEndCapture(stream_.get(), abandoned.out());
  }
  const BesideCaptures beside;
  // The memory that its work uses may go next.
  cudaStreamSynchronize(stream_.get());
  cudaGetLastError();
}

void CudaStream::copy(std::uintptr_t to, std::uintptr_t from, std::size_t bytes) {
  const ContextScope scope(stream_.context());
  TRT_MOE_CUDA_CHECK(scope, cudaMemcpyAsync(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes,
                                            cudaMemcpyDefault, stream_.get()));
}

// Of anybody else's memory a kernel might read what is not there, and the device would be lost.
void CudaStream::copy_own(std::uintptr_t to, std::uintptr_t from, std::size_t bytes) {
  const CopyArguments arguments = copy_arguments(to, from, bytes);
  if (is_for_a_kernel(arguments)) {
    launch(copy_kernel(arguments), &arguments, false);
  } else {
    copy(to, from, bytes);
  }
}

void CudaStream::run_gater(const GaterRun& run) {
  const GaterKernels gater = gater_kernels(run);
  for (std::size_t i = 0; i < gater.count; ++i) launch(gater.kernels[i].launch, gater.kernels[i].arguments, i > 0);
}

void CudaStream::launch(const KernelLaunch& kernel, const void* arguments, bool waits_itself) {
  const ContextScope scope(stream_.context());
  void* pointers[] = {const_cast<void*>(arguments)};
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = kernel.grid;
  config.blockDim = kernel.block;
  config.stream = stream_.get();
  config.attrs = &early;
  config.numAttrs = early_ && waits_itself ? 1 : 0;
  TRT_MOE_CUDA_CHECK(scope, cudaLaunchKernelExC(&config, kernel.function, pointers));
}

void CudaStream::synchronize() {
  const ContextScope scope(stream_.context());
  const BesideCaptures beside;
  TRT_MOE_CUDA_CHECK(scope, cudaStreamSynchronize(stream_.get()));
}

// The event may be recorded again at once: who waits for it waits for what was recorded before.
void CudaStream::wait_for(std::uintptr_t other) {
  const ContextScope scope(stream_.context());
  TRT_MOE_CUDA_CHECK(scope, cudaEventRecord(event_.get(), reinterpret_cast<cudaStream_t>(other)));
  TRT_MOE_CUDA_CHECK(scope, cudaStreamWaitEvent(stream_.get(), event_.get(), 0));
}

void CudaStream::begin_capture() {
  const ContextScope scope(stream_.context());
  // Thread-local: other threads may allocate memory, or load weights, meanwhile.
  TRT_MOE_CUDA_CHECK(scope, cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal));
}

std::unique_ptr<Graph> CudaStream::end_capture() {
  const ContextScope scope(stream_.context());
  GraphOwner graph(stream_.shared_context());
  TRT_MOE_CUDA_CHECK(scope, cudaStreamEndCapture(stream_.get(), graph.out()));
  return std::make_unique<CudaGraph>(std::move(graph));
}

class CudaGraphExec final : public GraphExec {
 public:
  // graph: where one must outlive its instance, as a graph with conditional handles may have to.
  explicit CudaGraphExec(GraphExecOwner exec, std::unique_ptr<ConditionalGraph> graph = nullptr)
      : graph_(std::move(graph)), exec_(std::move(exec)) {
    // The first launch would send the graph to the device otherwise.
    const ContextScope scope(exec_.context());
    StreamOwner stream(exec_.shared_context());
    TRT_MOE_CUDA_CHECK(scope, cudaStreamCreateWithFlags(stream.out(), cudaStreamNonBlocking));
    TRT_MOE_CUDA_CHECK(scope, cudaGraphUpload(exec_.get(), stream.get()));
    TRT_MOE_CUDA_CHECK(scope, cudaStreamSynchronize(stream.get()));
  }

  void launch(Stream& stream) override {
    const ContextScope scope(exec_.context());
    TRT_MOE_CUDA_CHECK(scope, cudaGraphLaunch(exec_.get(), static_cast<CudaStream&>(stream).get()));
  }

 private:
  std::unique_ptr<ConditionalGraph> graph_;
  GraphExecOwner exec_;
};

// What programmatic dependent launch needs, in graphs too.
constexpr struct {
  int compute_major;
  int driver;
} kEarlyFrom{9, 12030};

DeviceInfo ask(PrimaryContext& context) {
  const ContextScope scope(context);
  const BesideCaptures beside;
  DeviceInfo info;
  cudaDeviceProp properties{};
  TRT_MOE_CUDA_CHECK(scope, cudaGetDeviceProperties(&properties, context.ordinal()));
  info.name = properties.name;
  info.memory = properties.totalGlobalMem;
  info.compute_major = properties.major;
  info.compute_minor = properties.minor;
  info.integrated = properties.integrated != 0;
  TRT_MOE_CUDA_CHECK(scope, cudaDriverGetVersion(&info.driver_version));
  TRT_MOE_CUDA_CHECK(scope, cudaRuntimeGetVersion(&info.runtime_version));
  info.conditionals = conditionals_of(info.driver_version, info.runtime_version);
  return info;
}

}  // namespace

CudaGraph::CudaGraph(GraphOwner graph) : graph_(std::move(graph)) {
  nodes_ = node_histogram(ContextScope(graph_.context()), graph_.get());
}

CudaDevice::CudaDevice(int ordinal) : context_(std::make_shared<PrimaryContext>(ordinal)), info_(ask(*context_)) {
  const ContextScope scope(*context_);
  const BesideCaptures beside;
  cudaFuncAttributes attributes{};  // asking for them loads the kernels, or says that there are none for this GPU
  const auto load = [&](const void* kernel) { TRT_MOE_CUDA_CHECK(scope, cudaFuncGetAttributes(&attributes, kernel)); };
  for (const void* const kernel : all_kernels()) load(kernel);
  early_ = info_.compute_major >= kEarlyFrom.compute_major && info_.driver_version >= kEarlyFrom.driver;
  for (const void* const kernel : all_gater_kernels()) {
    load(kernel);
    // One that was compiled for an older GPU does not wait.
    early_ = early_ && attributes.ptxVersion >= kEarlyFrom.compute_major * 10;
  }
}

std::unique_ptr<Buffer> CudaDevice::allocate(MemoryKind kind, std::size_t bytes) {
  const ContextScope scope(*context_);
  const BesideCaptures beside;
  if (kind == MemoryKind::kDevice) {
    DeviceMemory memory(context_);
    TRT_MOE_CUDA_CHECK(scope, cudaMalloc(memory.out(), bytes));
    return std::make_unique<DeviceBuffer>(std::move(memory), bytes);
  }
  HostMemory memory(context_);
  TRT_MOE_CUDA_CHECK(scope, cudaHostAlloc(memory.out(), bytes, cudaHostAllocDefault));
  return std::make_unique<HostBuffer>(std::move(memory), bytes);
}

bool CudaDevice::holds(std::uintptr_t address) const {
  const ContextScope scope(*context_);
  const BesideCaptures beside;
  cudaPointerAttributes found{};
  TRT_MOE_CUDA_CHECK(scope, cudaPointerGetAttributes(&found, reinterpret_cast<const void*>(address)));
  // Managed memory goes where it is read, and page-locked memory of the host is seen from the device as well.
  return found.type == cudaMemoryTypeManaged ||
         (found.type == cudaMemoryTypeDevice && found.device == context_->ordinal() &&
          !context_->is_of_another(address)) ||
         (found.type == cudaMemoryTypeHost && reinterpret_cast<std::uintptr_t>(found.devicePointer) == address);
}

std::unique_ptr<Stream> CudaDevice::open_stream() {
  const ContextScope scope(*context_);
  const BesideCaptures beside;
  StreamOwner stream(context_);
  TRT_MOE_CUDA_CHECK(scope, cudaStreamCreateWithFlags(stream.out(), cudaStreamNonBlocking));
  EventOwner event(context_);
  TRT_MOE_CUDA_CHECK(scope, cudaEventCreateWithFlags(event.out(), cudaEventDisableTiming));
  return std::make_unique<CudaStream>(std::move(stream), std::move(event), early_);
}

std::unique_ptr<GraphExec> CudaDevice::instantiate(const Graph& graph) {
  const std::lock_guard lock(graphs_);
  const ContextScope scope(*context_);
  const BesideCaptures beside;
  GraphExecOwner exec(context_);
  TRT_MOE_CUDA_CHECK(scope, cudaGraphInstantiate(exec.out(), static_cast<const CudaGraph&>(graph).get(), 0));
  return std::make_unique<CudaGraphExec>(std::move(exec));
}

std::unique_ptr<GraphExec> CudaDevice::instantiate(const RoutedGraph& routed) {
  const std::lock_guard lock(graphs_);
  const ContextScope scope(*context_);
  const BesideCaptures beside;
  auto graph = std::make_unique<ConditionalGraph>(context_, routed);
  GraphExecOwner exec = graph->instantiate();
  return std::make_unique<CudaGraphExec>(std::move(exec), std::move(graph));
}

}  // namespace trt_moe::cuda
