#include "backends/cuda/plan/graph_topology.h"

#include <algorithm>
#include <initializer_list>

#include "core/error.h"

namespace trt_moe::cuda {

namespace {

// Adds `kinds`, one after the other, to one body of a conditional.
void add_body(std::vector<Node>& nodes, std::initializer_list<NodeKind> kinds, std::size_t parent, int body, int expert,
              int bucket) {
  std::vector<std::size_t> after;
  for (const NodeKind kind : kinds) {
    nodes.push_back({kind, after, static_cast<int>(parent), body, expert, bucket});
    after = {nodes.size() - 1};
  }
}

}  // namespace

std::vector<Node> graph_topology(const std::vector<std::size_t>& buckets, std::size_t capacity,
                                 Conditionals conditionals, bool speculate) {
  if (buckets.empty() || std::find(buckets.begin(), buckets.end(), 0U) != buckets.end()) {
    throw Error(ErrorKind::kInput, "a device-routed graph needs at least one expert, and of each at least one bucket");
  }
  if (conditionals == Conditionals::kNone) {
    throw Error(ErrorKind::kInput, "a device-routed graph needs conditional nodes, which this device has not");
  }
  // Conditionals cost time whatever they choose, and so do kernels: a single image needs no more than one of the first,
  // and none of the second to reach its expert.
  const bool one_switch = capacity == 1 && conditionals == Conditionals::kSwitch;
  const NodeKind routes = one_switch ? NodeKind::kRouteImage : NodeKind::kRoute;
  std::vector<Node> nodes{{NodeKind::kCopyIn, {}}, {NodeKind::kGater, {0}}, {routes, {1}}};
  const std::size_t route = nodes.size() - 1;
  const auto add_conditional = [&](NodeKind kind, int expert, int bucket) {
    nodes.push_back({kind, {route}, -1, -1, expert, bucket});
    return nodes.size() - 1;
  };
  const int experts = static_cast<int>(buckets.size());
  int first = 0;
  if (speculate && capacity == 1 && experts > 1) {
    first = 1;
    nodes.push_back({NodeKind::kCopyImage, {0}, -1, -1, 0, 0});
    nodes.push_back({NodeKind::kExpert, {route + 1}, -1, -1, 0, 0});
    // It writes nothing where the image is another expert's.
    nodes.push_back({NodeKind::kScatter, {route, route + 2}, -1, -1, 0, 0});
  }
  if (one_switch) {
    const std::size_t parent = add_conditional(NodeKind::kSwitch, -1, -1);
    for (int expert = first; expert < experts; ++expert) {
      add_body(nodes, {NodeKind::kExpert, NodeKind::kScatter}, parent, expert - first, expert, 0);
    }
    return nodes;
  }
  const auto gathered = {NodeKind::kGather, NodeKind::kExpert, NodeKind::kScatter};
  for (int expert = first; expert < experts; ++expert) {
    const int count = static_cast<int>(buckets[static_cast<std::size_t>(expert)]);
    if (conditionals == Conditionals::kSwitch) {
      const std::size_t parent = add_conditional(NodeKind::kSwitch, expert, -1);
      for (int bucket = 0; bucket < count; ++bucket) add_body(nodes, gathered, parent, bucket, expert, bucket);
    } else {
      for (int bucket = 0; bucket < count; ++bucket) {
        add_body(nodes, gathered, add_conditional(NodeKind::kIf, expert, bucket), 0, expert, bucket);
      }
    }
  }
  return nodes;
}

}  // namespace trt_moe::cuda
