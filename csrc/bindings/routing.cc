#include <pybind11/stl.h>

#include <algorithm>

#include "bindings/bindings.h"
#include "core/error.h"
#include "core/route_plan.h"

namespace py = pybind11;

namespace trt_moe {

void register_routing(py::module_& module) {
  module.def(
      "plan_routes",
      [](const py::array_t<float, py::array::c_style | py::array::forcecast>& logits, const std::vector<float>& costs,
         float latency_weight) {
        if (logits.ndim() != 2 || costs.empty() || logits.shape(1) != static_cast<py::ssize_t>(costs.size())) {
          throw Error(ErrorKind::kInput, "logits have " + std::to_string(logits.ndim()) + " dimensions for " +
                                             std::to_string(costs.size()) + " costs; expected [images, experts]");
        }
        RoutePlan plan;
        plan_routes({logits.data(), static_cast<std::size_t>(logits.size())}, costs, latency_weight, plan);
        py::array_t<std::int64_t> routes(static_cast<py::ssize_t>(plan.routes.size()));
        std::transform(plan.routes.begin(), plan.routes.end(), routes.mutable_data(), [](std::uint32_t route) {
          return route == kNoRoute ? std::int64_t{-1} : static_cast<std::int64_t>(route);
        });
        return routes;
      },
      py::arg("logits"), py::arg("costs"), py::arg("latency_weight"),
      "The expert index of each image, int64 [images]: argmax_k(logits[k] - latency_weight * costs[k]), ties to the\n"
      "lower index; -1 where a logit is not finite.");
}

}  // namespace trt_moe
