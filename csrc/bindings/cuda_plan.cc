#include <pybind11/stl.h>

#include <string>
#include <utility>

#include "backends/cuda/plan/arena_plan.h"
#include "backends/cuda/plan/graph_topology.h"
#include "backends/cuda/plan/route_reference.h"
#include "backends/cuda/plan/routed_graph.h"
#include "bindings/bindings.h"
#include "core/error.h"

namespace py = pybind11;

namespace trt_moe {

namespace {

const char* text(cuda::NodeKind kind) {
  switch (kind) {
    case cuda::NodeKind::kCopyIn: return "copy_in";
    case cuda::NodeKind::kGater: return "gater";
    case cuda::NodeKind::kRoute: return "route";
    case cuda::NodeKind::kRouteImage: return "route_image";
    case cuda::NodeKind::kSwitch: return "switch";
    case cuda::NodeKind::kIf: return "if";
    case cuda::NodeKind::kCopyImage: return "copy_image";
    case cuda::NodeKind::kGather: return "gather";
    case cuda::NodeKind::kExpert: return "expert";
    case cuda::NodeKind::kScatter: return "scatter";
  }
  return "";
}

cuda::Conditionals conditionals_named(const std::string& name) {
  if (name == "switch") return cuda::Conditionals::kSwitch;
  if (name == "if") return cuda::Conditionals::kIf;
  throw Error(ErrorKind::kInput, "conditionals is '" + name + "'; expected switch or if");
}

}  // namespace

// The pure functions behind the device-routed plan, for tests and for comparison with what the device does.
void register_cuda_plan(py::module_& module) {
  module.def(
      "route_reference",
      [](const py::array_t<float, py::array::c_style | py::array::forcecast>& logits, const std::vector<float>& costs,
         float latency_weight, std::size_t capacity, const std::vector<std::vector<std::size_t>>& buckets) {
        cuda::RoutedBatch batch = cuda::route_reference({logits.data(), static_cast<std::size_t>(logits.size())}, costs,
                                                        latency_weight, capacity, buckets);
        return std::make_tuple(std::move(batch.routes), std::move(batch.counts), std::move(batch.rows),
                               std::move(batch.buckets));
      },
      py::arg("logits"), py::arg("costs"), py::arg("latency_weight"), py::arg("capacity"), py::arg("buckets"),
      "What the route kernel writes for float32 [images, experts] logits: (routes, counts, rows [experts * capacity] "
      "in\n"
      "input order and then -1, index of each expert's smallest bucket that holds its images or their number).");
  module.def(
      "graph_topology",
      [](const std::vector<std::size_t>& buckets, std::size_t capacity, const std::string& conditionals,
         bool speculate) {
        std::vector<std::tuple<std::string, std::vector<std::size_t>, int, int, int, int>> nodes;
        for (const cuda::Node& node :
             cuda::graph_topology(buckets, capacity, conditionals_named(conditionals), speculate)) {
          nodes.emplace_back(text(node.kind), node.after, node.parent, node.body, node.expert, node.bucket);
        }
        return nodes;
      },
      py::arg("buckets"), py::arg("capacity"), py::arg("conditionals"), py::arg("speculate") = false,
      "Nodes of the device-routed graph for so many buckets of each expert and images, with \"switch\" or \"if\" "
      "nodes:\n"
      "[(kind, indices of the nodes it waits for, parent or -1, body or -1, expert or -1, bucket or -1)].");
  module.def(
      "arena_plan",
      [](std::size_t largest_bucket, std::size_t image_bytes, std::size_t outputs) {
        const cuda::ArenaPlan plan = cuda::arena_plan(largest_bucket, image_bytes, outputs);
        return std::make_tuple(plan.input, plan.output, plan.bytes);
      },
      py::arg("largest_bucket"), py::arg("image_bytes"), py::arg("outputs"),
      "Where a captured model's images and logits lie in its device memory, and its size: (input, output, bytes).");
}

}  // namespace trt_moe
