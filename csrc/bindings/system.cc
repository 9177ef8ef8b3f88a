#include <pybind11/stl.h>

#include "backends/registry.h"
#include "bindings/bindings.h"
#include "core/cpus.h"

namespace py = pybind11;

namespace trt_moe {

void register_system(py::module_& module) {
  module.def("built_backends", &built_backends, "Names of the backends this build has, best first.");
  module.def("usable_cpus", &usable_cpus, "CPUs this process may use: its affinity mask and cgroup quota.");
  module.def("cpu_quota", &cpu_quota, "CPUs that the cgroup's quota allows, rounded up; 0 without a limit.");
  module.def("cpu_name", &cpu_name, "The CPU's model name.");
}

}  // namespace trt_moe
