#include "core/call_times.h"

#include <pybind11/stl.h>

#include <chrono>
#include <optional>
#include <sstream>

#include "bindings/bindings.h"

namespace py = pybind11;

namespace trt_moe {

namespace {

constexpr double kMinDeadlineMs = 1e-6;
constexpr double kMaxDeadlineMs = 1e9;  // eleven days

CallTimes call_times(std::optional<double> deadline_ms) {
  if (!deadline_ms) return CallTimes::within(kNoLimit);
  if (*deadline_ms >= kMinDeadlineMs && *deadline_ms <= kMaxDeadlineMs) {
    const std::chrono::duration<double, std::milli> limit(*deadline_ms);
    return CallTimes::within(std::chrono::duration_cast<std::chrono::nanoseconds>(limit));
  }
  std::ostringstream text;
  text << "deadline_ms is " << *deadline_ms << "; expected a number from " << kMinDeadlineMs << " to "
       << kMaxDeadlineMs;
  throw Error(ErrorKind::kInput, text.str());
}

}  // namespace

void register_call_times(py::module_& module) {
  module.attr("MIN_DEADLINE_MS") = kMinDeadlineMs;
  module.attr("MAX_DEADLINE_MS") = kMaxDeadlineMs;
  py::class_<CallTimes>(module, "CallTimes", "When a call was made, which is now, and when its answers are due.")
      .def(py::init(&call_times), py::arg("deadline_ms") = py::none())
      .def_property_readonly(
          "over", [](const CallTimes& self) { return Clock::now() >= self.deadline; }, "Whether they are late by now.")
      .def_readonly("later", &CallTimes::later, "Images of the call that follow those of this part.")
      .def("before", &CallTimes::before, py::arg("others"),
           "For a part of the call's images, which so many others follow.");
}

}  // namespace trt_moe
