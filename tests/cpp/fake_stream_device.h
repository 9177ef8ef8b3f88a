#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "backends/cuda/plan/versions.h"
#include "backends/cuda/stream_device.h"
#include "core/error.h"
#include "fake_routed_graph.h"
#include "gater_reference.h"

namespace trt_moe::testing {

// What can be made to go wrong. A count is of calls that still succeed; -1: all of them.
struct Faults {
  std::atomic<int> allocations{-1};
  std::atomic<int> launches{-1};              // then one throws
  std::atomic<int> launches_before_loss{-1};  // then one leaves the device unusable, as synchronize finds out
  std::atomic<bool> refuse_capture{false};
  std::atomic<bool> refuse_routed{false};

  static bool strikes(std::atomic<int>& left) {
    int before = left.load();
    while (before >= 0 && !left.compare_exchange_weak(before, before - 1)) {
    }
    return before == 0;
  }
};

// What exists on a device, and whether it still works.
struct FakeDeviceState {
  Faults faults;
  std::atomic<bool> lost{false};
  std::atomic<int> objects{0};  // buffers, streams, graphs
  std::mutex mutex;
  std::map<std::uintptr_t, std::size_t> memory;  // live buffers
  std::set<std::uintptr_t> of_others;            // those of them that count as other people's

  void expect_usable() const {
    if (lost.load()) throw Error(ErrorKind::kDevice, "an illegal memory access was encountered");
  }

  void expect_memory(std::uintptr_t address, std::size_t bytes) {
    const std::lock_guard lock(mutex);
    const auto after = memory.upper_bound(address);
    const bool inside =
        after != memory.begin() && std::prev(after)->first + std::prev(after)->second >= address + bytes;
    if (!inside) throw Error(ErrorKind::kDevice, "a copy leaves the memory it begins in");
  }

  void expect_own(std::uintptr_t address) {
    const std::lock_guard lock(mutex);
    if (of_others.count(std::prev(memory.upper_bound(address))->first) == 1) {
      throw Error(ErrorKind::kDevice, "other people's memory is copied as the device's own");
    }
  }
};

// Counts an object for as long as it lives.
class FakeObject {
 public:
  explicit FakeObject(std::shared_ptr<FakeDeviceState> state) : state_(std::move(state)) { ++state_->objects; }
  ~FakeObject() { --state_->objects; }
  FakeObject(const FakeObject&) = delete;
  FakeObject& operator=(const FakeObject&) = delete;
  FakeDeviceState* operator->() const noexcept { return state_.get(); }

 private:
  std::shared_ptr<FakeDeviceState> state_;
};

class FakeBuffer final : public cuda::Buffer {
 public:
  FakeBuffer(std::shared_ptr<FakeDeviceState> state, cuda::MemoryKind kind, std::size_t bytes)
      : object_(std::move(state)), kind_(kind), bytes_(bytes) {
    const std::lock_guard lock(object_->mutex);
    object_->memory[address()] = bytes;
  }
  ~FakeBuffer() override {
    const std::lock_guard lock(object_->mutex);
    object_->memory.erase(address());
  }
  std::size_t size() const noexcept override { return bytes_.size(); }
  std::uintptr_t device() const noexcept override { return kind_ == cuda::MemoryKind::kPinned ? 0 : address(); }
  std::byte* host() const noexcept override {
    return kind_ == cuda::MemoryKind::kDevice ? nullptr : const_cast<std::byte*>(bytes_.data());
  }

 private:
  std::uintptr_t address() const noexcept { return reinterpret_cast<std::uintptr_t>(bytes_.data()); }

  FakeObject object_;
  cuda::MemoryKind kind_;
  std::vector<std::byte> bytes_;
};

class FakeGraph final : public cuda::Graph {
 public:
  explicit FakeGraph(std::shared_ptr<FakeDeviceState> state) : object_(std::move(state)) {}
  const cuda::NodeHistogram& nodes() const noexcept override { return nodes_; }
  void add(const std::string& kind, std::function<void()> work) {
    ++nodes_[kind];
    work_.push_back(std::move(work));
  }
  void run() const {
    for (const auto& work : work_) work();
  }

 private:
  FakeObject object_;
  cuda::NodeHistogram nodes_;
  std::vector<std::function<void()>> work_;
};

// Runs nothing before it is waited for, so that whoever forgets to wait reads old memory.
class FakeStream final : public cuda::Stream {
 public:
  explicit FakeStream(std::shared_ptr<FakeDeviceState> state) : object_(state), state_(std::move(state)) {}

  std::uintptr_t handle() const noexcept override { return reinterpret_cast<std::uintptr_t>(this); }

  void enqueue(const std::string& kind, std::function<void()> work) {
    object_->expect_usable();
    if (capturing_) {
      capturing_->add(kind, std::move(work));
    } else {
      pending_.push_back(std::move(work));
    }
  }

  void copy(std::uintptr_t to, std::uintptr_t from, std::size_t bytes) override {
    object_->expect_memory(to, bytes);
    object_->expect_memory(from, bytes);
    enqueue("memcpy", [=] { std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes); });
  }

  void copy_own(std::uintptr_t to, std::uintptr_t from, std::size_t bytes) override {
    copy(to, from, bytes);
    object_->expect_own(to);
    object_->expect_own(from);
  }

  void run_gater(const cuda::GaterRun& run) override {
    enqueue("kernel", [run] { gater_reference(run); });
  }

  void synchronize() override {
    object_->expect_usable();
    for (auto& work : std::exchange(pending_, {})) {
      work();
      object_->expect_usable();
    }
  }

  void wait_for(std::uintptr_t other) override {
    enqueue("waitEvent", [other] { reinterpret_cast<FakeStream*>(other)->synchronize(); });
  }

  void begin_capture() override {
    object_->expect_usable();
    capturing_ = std::make_unique<FakeGraph>(state_);
  }

  std::unique_ptr<cuda::Graph> end_capture() override {
    object_->expect_usable();
    std::unique_ptr<FakeGraph> graph = std::move(capturing_);
    if (object_->faults.refuse_capture) {
      throw Error(ErrorKind::kDevice, "operation failed due to a previous error during capture");
    }
    return graph;
  }

 private:
  FakeObject object_;
  std::shared_ptr<FakeDeviceState> state_;
  std::vector<std::function<void()>> pending_;
  std::unique_ptr<FakeGraph> capturing_;
};

class FakeGraphExec final : public cuda::GraphExec {
 public:
  FakeGraphExec(std::shared_ptr<FakeDeviceState> state, std::function<void()> work)
      : object_(std::move(state)), work_(std::move(work)) {}

  void launch(cuda::Stream& stream) override {
    object_->expect_usable();
    if (Faults::strikes(object_->faults.launches)) throw Error(ErrorKind::kDevice, "the launch failed");
    const bool loses = Faults::strikes(object_->faults.launches_before_loss);
    dynamic_cast<FakeStream&>(stream).enqueue("graph", [this, loses] {
      if (loses) object_->lost = true;
      if (!loses) work_();
    });
  }

 private:
  FakeObject object_;
  std::function<void()> work_;
};

// A GPU on the host: streams and graphs are lists of functions, and all memory is the host's.
class FakeStreamDevice final : public cuda::StreamDevice {
 public:
  explicit FakeStreamDevice(cuda::DeviceInfo info) : info_(std::move(info)) {
    cuda::check_versions(info_.driver_version, info_.runtime_version);
    info_.conditionals = cuda::conditionals_of(info_.driver_version, info_.runtime_version);
  }

  static cuda::DeviceInfo some_gpu(int driver = 13000, int runtime = 13000) {
    return {"Fake GPU", 9, 0, driver, runtime, std::size_t{1} << 30, false};
  }

  const cuda::DeviceInfo& info() const noexcept override { return info_; }
  bool usable() const noexcept override { return !state_->lost.load(); }

  std::unique_ptr<cuda::Buffer> allocate(cuda::MemoryKind kind, std::size_t bytes) override {
    state_->expect_usable();
    if (Faults::strikes(state_->faults.allocations)) throw Error(ErrorKind::kDevice, "out of memory");
    return std::make_unique<FakeBuffer>(state_, kind, bytes);
  }

  bool holds(std::uintptr_t address) const override {
    state_->expect_usable();
    const std::lock_guard lock(state_->mutex);
    const auto after = state_->memory.upper_bound(address);
    return after != state_->memory.begin() && std::prev(after)->first + std::prev(after)->second > address;
  }

  std::unique_ptr<cuda::Stream> open_stream() override {
    state_->expect_usable();
    return std::make_unique<FakeStream>(state_);
  }

  std::unique_ptr<cuda::GraphExec> instantiate(const cuda::Graph& graph) override {
    state_->expect_usable();
    return std::make_unique<FakeGraphExec>(state_, [&graph] { dynamic_cast<const FakeGraph&>(graph).run(); });
  }

  std::unique_ptr<cuda::GraphExec> instantiate(const cuda::RoutedGraph& routed) override {
    state_->expect_usable();
    if (state_->faults.refuse_routed) throw Error(ErrorKind::kDevice, "operation not supported");
    check_routed_graph(routed);
    return std::make_unique<FakeGraphExec>(state_, [routed] {
      run_routed_graph(routed, [](const cuda::Graph& graph) { dynamic_cast<const FakeGraph&>(graph).run(); });
    });
  }

  Faults& faults() noexcept { return state_->faults; }
  std::shared_ptr<FakeDeviceState> state() const noexcept { return state_; }

 private:
  cuda::DeviceInfo info_;
  std::shared_ptr<FakeDeviceState> state_ = std::make_shared<FakeDeviceState>();
};

}  // namespace trt_moe::testing
