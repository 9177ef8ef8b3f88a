// Memory, streams and captures on a GPU: what the tests on the fake device take on trust.
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "backends/cuda/cuda_check.h"
#include "backends/cuda/node_histogram.h"
#include "backends/cuda/primary_context.h"
#include "gpu_support.h"

using namespace trt_moe;
using cuda::Buffer;
using cuda::MemoryKind;
using testing::HostArray;
using testing::message_of;
using testing::on_a_thread;
using testing::the_gpu;

namespace {

template <typename Function>
Function* of_driver(const char* name) {
  void* const driver = dlopen("libcuda.so.1", RTLD_NOW);
  REQUIRE(driver != nullptr);
  return reinterpret_cast<Function*>(dlsym(driver, name));
}

}  // namespace

TEST_CASE("the device tells what it is") {
  const cuda::DeviceInfo& info = the_gpu()->info();
  CHECK_FALSE(info.name.empty());
  CHECK(info.compute_major >= 7);
  CHECK(cuda::compute_capability(0) == std::to_string(info.compute_major) + "." + std::to_string(info.compute_minor));
  CHECK(info.memory > (std::size_t{1} << 28));
  CHECK(info.driver_version >= 12000);
  CHECK(info.runtime_version >= 12040);
  CHECK(the_gpu()->usable());
}

TEST_CASE("a number that no GPU has is refused, with those there are") {
  CHECK(message_of([] { cuda::open_device(-1); }).find("no GPU -1") != std::string::npos);
  CHECK(message_of([] { cuda::open_device(4096); }).find("number") != std::string::npos);
  CHECK(message_of([] { cuda::compute_capability(4096); }).find("number") != std::string::npos);
}

TEST_CASE("memory that is not there is refused, and the device goes on") {
  CHECK(message_of([] {
          the_gpu()->allocate(MemoryKind::kDevice, std::size_t{1} << 50);
        }).find("cudaErrorMemoryAllocation") != std::string::npos);
  CHECK(the_gpu()->usable());
  CHECK(the_gpu()->allocate(MemoryKind::kDevice, 1000)->size() == 1000);
}

TEST_CASE("copies go round through pinned and device memory, and a device knows its own") {
  const auto stream = the_gpu()->open_stream();
  const HostArray<float> from(1000);
  const HostArray<float> to(1000);
  const auto device = the_gpu()->allocate(MemoryKind::kDevice, 1000 * sizeof(float));
  const auto other = the_gpu()->allocate(MemoryKind::kDevice, 1000 * sizeof(float));
  for (std::size_t i = 0; i < 1000; ++i) from[i] = static_cast<float>(i);
  stream->copy(device->device(), from.at(), 1000 * sizeof(float));
  stream->copy(other->device(), device->device(), 1000 * sizeof(float));
  stream->copy(to.at(), other->device(), 1000 * sizeof(float));
  stream->synchronize();
  CHECK(std::equal(from.values().begin(), from.values().end(), to.values().begin()));
  CHECK(the_gpu()->holds(device->device() + 100));
  CHECK(the_gpu()->holds(from.at()));
  const float on_stack = 0.0F;
  CHECK_FALSE(the_gpu()->holds(reinterpret_cast<std::uintptr_t>(&on_stack)));
}

TEST_CASE("a stream waits for another one") {
  const auto slow = the_gpu()->open_stream();
  const auto fast = the_gpu()->open_stream();
  const auto value = the_gpu()->allocate(MemoryKind::kDevice, sizeof(float));
  const HostArray<float> seen(1);
  testing::enqueue_slow_write(slow->handle(), value->device(), 1.0F, 20'000);
  fast->wait_for(slow->handle());
  fast->copy(seen.at(), value->device(), sizeof(float));
  fast->synchronize();
  CHECK(seen[0] == 1.0F);
}

TEST_CASE("a context that another library made is the thread's again after every call") {
  const auto create = of_driver<int(void**, unsigned, int)>("cuCtxCreate_v2");
  const auto get_current = of_driver<int(void**)>("cuCtxGetCurrent");
  const auto destroy = of_driver<int(void*)>("cuCtxDestroy_v2");
  on_a_thread([&] {
    void* own = nullptr;
    REQUIRE(create(&own, 0, 0) == 0);
    const auto is_current = [&] {
      void* current = nullptr;
      return get_current(&current) == 0 && current == own;
    };
    {
      const auto stream = the_gpu()->open_stream();
      const auto value = the_gpu()->allocate(MemoryKind::kDevice, sizeof(float));
      CHECK(is_current());
      const HostArray<float> host(1);
      stream->copy(value->device(), host.at(), sizeof(float));
      stream->synchronize();
      CHECK(is_current());
    }
    CHECK(is_current());
    destroy(own);
  });
}

TEST_CASE("memory of a context that another library made is not the device's to read") {
  const auto create = of_driver<int(void**, unsigned, int)>("cuCtxCreate_v2");
  const auto destroy = of_driver<int(void*)>("cuCtxDestroy_v2");
  const auto allocate = of_driver<int(std::uintptr_t*, std::size_t)>("cuMemAlloc_v2");
  const auto release = of_driver<int(std::uintptr_t)>("cuMemFree_v2");
  on_a_thread([&] {
    void* own = nullptr;
    REQUIRE(create(&own, 0, 0) == 0);
    std::uintptr_t memory = 0;
    REQUIRE(allocate(&memory, 1000) == 0);
    CHECK_FALSE(the_gpu()->holds(memory));
    CHECK_FALSE(the_gpu()->holds(memory + 999));
    CHECK(release(memory) == 0);
    destroy(own);
  });
}

TEST_CASE("a capture counts its nodes, and runs as often as it is launched") {
  const auto stream = the_gpu()->open_stream();
  const auto device = the_gpu()->allocate(MemoryKind::kDevice, 2 * sizeof(float));
  const HostArray<float> host(2);
  stream->begin_capture();
  stream->copy(device->device(), host.at(), 2 * sizeof(float));
  testing::enqueue_slow_write(stream->handle(), device->device(), 7.0F, 1);
  stream->copy(host.at(), device->device(), 2 * sizeof(float));
  const auto graph = stream->end_capture();
  CHECK(graph->nodes().at("kernel") == 1);
  CHECK(graph->nodes().at("memcpy") == 2);
  CHECK(graph->nodes().count("other") == 0);
  const auto exec = the_gpu()->instantiate(*graph);
  for (const float second : {3.0F, 4.0F}) {
    host[0] = 0.0F;
    host[1] = second;
    exec->launch(*stream);
    stream->synchronize();
    CHECK(host[0] == 7.0F);
    CHECK(host[1] == second);
  }
}

TEST_CASE("work that cannot be captured is an error that names it, and the stream works on") {
  const auto stream = the_gpu()->open_stream();
  stream->begin_capture();
  CHECK(message_of([&] { stream->synchronize(); }).find("cudaStreamSynchronize failed") != std::string::npos);
  CHECK(message_of([&] { stream->end_capture(); }).find("cudaErrorStreamCapture") != std::string::npos);
  CHECK(the_gpu()->usable());
  const HostArray<float> host(1);
  const auto device = the_gpu()->allocate(MemoryKind::kDevice, sizeof(float));
  stream->copy(device->device(), host.at(), sizeof(float));
  stream->synchronize();
}

TEST_CASE("a stream that goes in the middle of a capture leaves nothing behind") {
  {
    const auto stream = the_gpu()->open_stream();
    stream->begin_capture();
  }
  const auto stream = the_gpu()->open_stream();
  stream->begin_capture();
  CHECK(stream->end_capture()->nodes().empty());
}

TEST_CASE("memory, streams and graphs are made and go beside a capture of somebody else's, and leave it whole") {
  const auto stream = the_gpu()->open_stream();
  const HostArray<float> host(1);
  const auto device = the_gpu()->allocate(MemoryKind::kDevice, sizeof(float));
  stream->begin_capture();
  stream->copy(device->device(), host.at(), sizeof(float));
  const auto graph = stream->end_capture();

  cudaStream_t theirs = nullptr;
  cudaGraph_t captured = nullptr;
  REQUIRE(cudaStreamCreateWithFlags(&theirs, cudaStreamNonBlocking) == cudaSuccess);
  // In the mode that torch takes, which forbids much to all threads.
  REQUIRE(cudaStreamBeginCapture(theirs, cudaStreamCaptureModeGlobal) == cudaSuccess);
  on_a_thread([&] {
    const auto memory = the_gpu()->allocate(MemoryKind::kDevice, 1000);
    const HostArray<float> pinned(1000);
    const auto again = cuda::open_device(0);  // as every router does
    const auto other = the_gpu()->open_stream();
    const auto exec = the_gpu()->instantiate(*graph);
    exec->launch(*other);
    other->synchronize();
  });
  CHECK(cudaStreamEndCapture(theirs, &captured) == cudaSuccess);
  if (captured != nullptr) cudaGraphDestroy(captured);
  cudaStreamDestroy(theirs);
}

TEST_CASE("an error of ours is not left for whoever asks the runtime next") {
  cudaGetLastError();
  message_of([] { the_gpu()->allocate(MemoryKind::kDevice, std::size_t{1} << 50); });
  CHECK(cudaGetLastError() == cudaSuccess);
}

TEST_CASE("a capture of ours lets other threads allocate") {
  const auto stream = the_gpu()->open_stream();
  const auto device = the_gpu()->allocate(MemoryKind::kDevice, sizeof(float));
  const HostArray<float> host(1);
  stream->begin_capture();
  stream->copy(device->device(), host.at(), sizeof(float));
  on_a_thread([] {
    void* memory = nullptr;
    CHECK(cudaMalloc(&memory, 100) == cudaSuccess);
    cudaFree(memory);
  });
  CHECK(stream->end_capture()->nodes().at("memcpy") == 1);
}

TEST_CASE("some errors leave a context unusable, others do not") {
  for (const cudaError_t lost :
       {cudaErrorIllegalAddress, cudaErrorLaunchFailure, cudaErrorLaunchTimeout, cudaErrorAssert,
        cudaErrorMisalignedAddress, cudaErrorIllegalInstruction, cudaErrorInvalidPc, cudaErrorInvalidAddressSpace,
        cudaErrorHardwareStackError, cudaErrorECCUncorrectable, static_cast<cudaError_t>(721)}) {
    CAPTURE(static_cast<int>(lost));
    CHECK(cuda::is_sticky(lost));
  }
  for (const cudaError_t passes : {cudaErrorMemoryAllocation, cudaErrorInvalidValue, cudaErrorStreamCaptureInvalidated,
                                   cudaErrorNotSupported, cudaErrorInvalidResourceHandle}) {
    CAPTURE(static_cast<int>(passes));
    CHECK_FALSE(cuda::is_sticky(passes));
  }
}

TEST_CASE("the nodes of child graphs count, and copies of pageable memory in either direction") {
  cuda::PrimaryContext context(0);
  const cuda::ContextScope scope(context);
  cudaGraph_t inner = nullptr;
  cudaGraph_t outer = nullptr;
  cudaGraphNode_t node = nullptr;
  void* device = nullptr;
  float pageable = 0.0F;
  const HostArray<float> pinned(1);
  void* const host = reinterpret_cast<void*>(pinned.at());
  REQUIRE(cudaMalloc(&device, sizeof(float)) == cudaSuccess);
  REQUIRE(cudaGraphCreate(&inner, 0) == cudaSuccess);
  REQUIRE(cudaGraphCreate(&outer, 0) == cudaSuccess);
  const auto add_copy = [&](void* to, void* from, cudaMemcpyKind kind) {
    return cudaGraphAddMemcpyNode1D(&node, inner, nullptr, 0, to, from, sizeof(float), kind);
  };
  REQUIRE(add_copy(device, &pageable, cudaMemcpyHostToDevice) == cudaSuccess);
  REQUIRE(add_copy(&pageable, device, cudaMemcpyDeviceToHost) == cudaSuccess);
  REQUIRE(add_copy(host, device, cudaMemcpyDeviceToHost) == cudaSuccess);
  REQUIRE(cudaGraphAddChildGraphNode(&node, outer, nullptr, 0, inner) == cudaSuccess);
  const cuda::NodeHistogram nodes = cuda::node_histogram(scope, outer);
  CHECK(nodes.at("graph") == 1);
  REQUIRE(nodes.count("memcpy") == 1);
  CHECK(nodes.at("memcpy") == 3);
  CHECK(nodes.at("memcpyPageable") == 2);
  CHECK(nodes.at("memcpyDeviceToHost") == 2);
  CHECK(nodes.at("memcpyHostToDevice") == 1);
  cudaGraphDestroy(outer);
  cudaGraphDestroy(inner);
  cudaFree(device);
}

// It ends the context, so it runs in a process of its own: see CMakeLists.txt.
TEST_CASE("an illegal access leaves the device unusable, and every later call says so" * doctest::skip()) {
  const auto stream = the_gpu()->open_stream();
  testing::enqueue_illegal_write(stream->handle());
  const std::string first = message_of([&] { stream->synchronize(); });
  CHECK(first.find("cudaErrorIllegalAddress") != std::string::npos);
  CHECK_FALSE(the_gpu()->usable());
  CHECK(message_of([&] { stream->synchronize(); }) == first);
  CHECK(message_of([] { the_gpu()->allocate(MemoryKind::kDevice, 1); }) == first);
  CHECK(message_of([] { the_gpu()->open_stream(); }) == first);
}
