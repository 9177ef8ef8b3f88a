#include "backends/cuda/plan/graph_topology.h"

#include <algorithm>

#include "core/error.h"

namespace trt_moe::cuda {

namespace {

// Adds gather, expert and scatter to one body of a conditional.
void add_body(std::vector<Node>& nodes, std::size_t parent, int body, int expert, int bucket) {
  std::vector<std::size_t> after;
  for (const NodeKind kind : {NodeKind::kGather, NodeKind::kExpert, NodeKind::kScatter}) {
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
  std::vector<Node> nodes{{NodeKind::kCopyIn, {}}, {NodeKind::kGater, {0}}, {NodeKind::kRoute, {1}}};
  const std::size_t route = nodes.size() - 1;
  std::vector<std::size_t> ends;
  const auto add_conditional = [&](NodeKind kind, int expert, int bucket) {
    nodes.push_back({kind, {route}, -1, -1, expert, bucket});
    ends.push_back(nodes.size() - 1);
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
    ends.push_back(route + 3);
  }
  if (capacity == 1 && conditionals == Conditionals::kSwitch) {
    // Conditionals cost time whatever they choose, and a single image needs no more than one.
    const std::size_t parent = add_conditional(NodeKind::kSwitch, -1, -1);
    for (int expert = first; expert < experts; ++expert) add_body(nodes, parent, expert - first, expert, 0);
    nodes.push_back({NodeKind::kCopyOut, ends});
    return nodes;
  }
  for (int expert = first; expert < experts; ++expert) {
    const int count = static_cast<int>(buckets[static_cast<std::size_t>(expert)]);
    if (conditionals == Conditionals::kSwitch) {
      const std::size_t parent = add_conditional(NodeKind::kSwitch, expert, -1);
      for (int bucket = 0; bucket < count; ++bucket) add_body(nodes, parent, bucket, expert, bucket);
    } else {
      for (int bucket = 0; bucket < count; ++bucket) {
        add_body(nodes, add_conditional(NodeKind::kIf, expert, bucket), 0, expert, bucket);
      }
    }
  }
  nodes.push_back({NodeKind::kCopyOut, ends});
  return nodes;
}

}  // namespace trt_moe::cuda
