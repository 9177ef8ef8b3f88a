#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "backends/cuda/plan/gater_arguments.h"
#include "backends/cuda/plan/routed_graph.h"

namespace trt_moe::cuda {

// What a device can do, asked once when it is opened.
struct DeviceInfo {
  std::string name;         // "NVIDIA H200"
  int compute_major = 0;    // 9 of 9.0
  int compute_minor = 0;    // 0 of 9.0
  int driver_version = 0;   // 13000: what the driver supports
  int runtime_version = 0;  // 13000: what this build was linked with
  std::size_t memory = 0;   // bytes
  bool integrated = false;  // shares its memory with the CPU, as a Jetson does
  Conditionals conditionals = Conditionals::kNone;
};

enum class MemoryKind {
  kDevice,  // only the device reads and writes it
  kPinned,  // page-locked host memory, which kernels reach by the address that the host has for it
};

// Memory with one owner.
class Buffer {
 public:
  virtual ~Buffer() = default;
  virtual std::size_t size() const noexcept = 0;
  virtual std::uintptr_t device() const noexcept = 0;  // 0 where it is the host's
  virtual std::byte* host() const noexcept = 0;        // nullptr where the host cannot see it
};

// How many nodes of each kind a captured graph holds, child graphs included: {"kernel": 12, "memcpy": 1}.
using NodeHistogram = std::map<std::string, int>;

// Captured work, which cannot run yet: it is instantiated, or becomes part of a larger graph.
class Graph {
 public:
  virtual ~Graph() = default;
  virtual const NodeHistogram& nodes() const noexcept = 0;
};

class Stream;

// A graph that can be launched, by one thread at a time.
class GraphExec {
 public:
  virtual ~GraphExec() = default;
  virtual void launch(Stream& stream) = 0;
};

// An ordered queue of work. Used by one thread at a time.
class Stream {
 public:
  virtual ~Stream() = default;
  virtual std::uintptr_t handle() const noexcept = 0;  // what other libraries enqueue on
  // Addresses of the host (pinned) or of the device, either way round.
  virtual void copy(std::uintptr_t to, std::uintptr_t from, std::size_t bytes) = 0;
  // The same, where `allocate` gave both: in whatever way is the quickest.
  virtual void copy_own(std::uintptr_t to, std::uintptr_t from, std::size_t bytes) = 0;
  // The gater's kernels, one after the other.
  virtual void run_gater(const GaterRun& run) = 0;
  virtual void synchronize() = 0;
  // Work enqueued here from now on starts after what is on `other` now, a handle of any library.
  virtual void wait_for(std::uintptr_t other) = 0;
  virtual void begin_capture() = 0;
  // Ends the capture in any case. Throws Error(kDevice) when something not capturable was enqueued.
  virtual std::unique_ptr<Graph> end_capture() = 0;
};

// One GPU, or a test's stand-in for it. Thread-safe. Everything throws Error(kDevice); after an error that
// leaves the device unusable for the process every later call throws it again, and `usable` is false.
class StreamDevice {
 public:
  virtual ~StreamDevice() = default;
  virtual const DeviceInfo& info() const noexcept = 0;
  virtual bool usable() const noexcept = 0;
  virtual std::unique_ptr<Buffer> allocate(MemoryKind kind, std::size_t bytes) = 0;
  // Whether an address, of anybody's memory, is one of this device.
  virtual bool holds(std::uintptr_t address) const = 0;
  virtual std::unique_ptr<Stream> open_stream() = 0;
  virtual std::unique_ptr<GraphExec> instantiate(const Graph& graph) = 0;
  // The device-routed plan; only where info().conditionals is not kNone.
  virtual std::unique_ptr<GraphExec> instantiate(const RoutedGraph& routed) = 0;
};

}  // namespace trt_moe::cuda
