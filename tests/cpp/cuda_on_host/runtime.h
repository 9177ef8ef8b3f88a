// CUDA's runtime on the CPU: what its handles point to. Streams are threads, device memory is the heap's, kernels run
// as C++ (device.h), and what CUDA forbids is refused. So the backend's own code runs under the sanitizers without a
// GPU. What it does not show: memory of the device read by the host, or the host's by kernels; races between the blocks
// of a kernel; and races of the host's own threads that a lock in here hides.
#pragma once

#include <cuda_runtime_api.h>

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace on_host {

using Work = std::function<void()>;

// Keeps the error for cudaGetLastError.
cudaError_t answer(cudaError_t status);

// Refuses where the device is lost, or the thread's context is not the primary one.
cudaError_t enter();

// As enter, for calls that CUDA forbids while certain captures go on; it ends those.
cudaError_t enter_beside_captures();

// Leaves the device unusable.
void fault(cudaError_t error);
// By which error it is; cudaSuccess where it is not.
cudaError_t loss();

bool knows(const void* kernel);
// The kernel with these arguments, which are copied; nothing where nobody has made it known.
Work bind(const void* kernel, dim3 grid, dim3 threads, void** arguments);

// With older headers it is an older GPU, on which no kernel begins early.
constexpr int kComputeMajor = CUDART_VERSION >= 12080 ? 9 : 8;
constexpr std::size_t kDeviceMemory = std::size_t{1} << 36;

enum class Memory { kDevice, kPinned, kPageable };
Memory memory_of(const void* address);

// What a stream or an event is waited for by.
class Mark {
 public:
  void set();
  void wait();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool set_ = false;
};

}  // namespace on_host

struct CUgraphNode_st {
  cudaGraphNodeType type = cudaGraphNodeTypeEmpty;
  std::vector<std::size_t> after;  // of the graph's nodes, by index
  on_host::Work work;              // of a kernel or a copy
  bool early = false;              // a kernel that waits for those itself
  cudaMemcpy3DParms copy{};
  std::unique_ptr<CUgraph_st> child;
  cudaGraphConditionalHandle handle = 0;
  std::vector<std::unique_ptr<CUgraph_st>> bodies;  // of a conditional node
  std::vector<cudaGraph_t> shown_bodies;            // what its maker sees of them
  bool is_switch = false;
};

struct CUgraph_st {
  std::vector<std::unique_ptr<CUgraphNode_st>> nodes;
  std::vector<cudaGraphConditionalHandle> handles;
  CUgraph_st* parent = nullptr;  // of a body
  bool has_instance = false;

  std::unique_ptr<CUgraph_st> clone() const;
  cudaGraphNode_t add(std::unique_ptr<CUgraphNode_st> node, std::vector<std::size_t> after);
  // The nodes' indices; nothing where one is of another graph.
  std::unique_ptr<std::vector<std::size_t>> indices(const cudaGraphNode_t* of, std::size_t count) const;
};

struct CUevent_st {
  std::mutex mutex;
  std::shared_ptr<on_host::Mark> mark;  // of what was recorded last
};

struct CUstream_st {
  CUstream_st();
  ~CUstream_st();

  void enqueue(on_host::Work work);
  void drain();

  // A capture, of the one stream that it began on.
  struct Capture {
    std::unique_ptr<CUgraph_st> graph = std::make_unique<CUgraph_st>();
    cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
    std::thread::id thread;
    bool valid = true;
    void add(std::unique_ptr<CUgraphNode_st> node);
  };
  std::unique_ptr<Capture> capture;  // guarded by on_host::captures_mutex

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<on_host::Work> queue_;
  bool busy_ = false;
  bool ends_ = false;
  std::thread thread_;
};

namespace on_host {

// Guards every stream's capture; `capturing` lists the streams that have one.
extern std::mutex captures_mutex;
extern std::vector<CUstream_st*> capturing;

CUstream_st& stream_of(cudaStream_t handle);

// Enqueues a node's work, or makes the node a part of the stream's capture.
cudaError_t submit(cudaStream_t stream, std::unique_ptr<CUgraphNode_st> node);

std::unique_ptr<CUgraphNode_st> copy_node(void* to, const void* from, std::size_t bytes);
std::unique_ptr<CUgraphNode_st> kernel_node(const void* kernel, dim3 grid, dim3 threads, void** arguments);

}  // namespace on_host
