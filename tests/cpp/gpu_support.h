// What the tests on a GPU share.
#pragma once

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <thread>

#include "core/error.h"
#include "toy_models.h"

namespace trt_moe::testing {

inline std::uintptr_t address(const std::byte* host) { return reinterpret_cast<std::uintptr_t>(host); }

inline std::string message_of(const std::function<void()>& act) {
  try {
    act();
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::kDevice);
    return error.what();
  }
  FAIL("nothing was thrown");
  return "";
}

// What work on a thread of its own fails with, empty where it does not. What it throws would end the process otherwise,
// and with it all tests that come later.
inline std::string error_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const std::exception& error) {
    return error.what();
  } catch (...) {
    return "a requirement does not hold";
  }
  return "";
}

inline void on_a_thread(const std::function<void()>& work) {
  std::string error;
  std::thread([&] { error = error_of(work); }).join();
  CHECK(error == "");
}

template <typename T>
class HostArray {
 public:
  explicit HostArray(std::size_t count)
      : buffer_(the_gpu()->allocate(cuda::MemoryKind::kPinned, count * sizeof(T))), count_(count) {}
  std::span<T> values() const { return {reinterpret_cast<T*>(buffer_->host()), count_}; }
  T& operator[](std::size_t i) const { return values()[i]; }
  std::uintptr_t at() const { return address(buffer_->host()); }

 private:
  std::unique_ptr<cuda::Buffer> buffer_;
  std::size_t count_;
};

}  // namespace trt_moe::testing
