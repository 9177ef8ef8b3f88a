#pragma once

#include <cstddef>
#include <vector>

namespace trt_moe::cuda {

// Which conditional nodes a driver and runtime offer.
enum class Conditionals {
  kNone,    // before CUDA 12.4
  kIf,      // CUDA 12.4 to 12.7: one IF per expert and bucket
  kSwitch,  // from CUDA 12.8: one SWITCH per expert over its buckets, or for a single image one over the experts
};

enum class NodeKind {
  kCopyIn,
  kGater,
  kRoute,
  kRouteImage,  // of a single image, which it takes to its expert, unless that runs whatever the route
  kSwitch,
  kIf,
  kCopyImage,  // to the expert that runs whatever the route
  kGather,
  kExpert,
  kScatter,
};

// One node of the device-routed graph. Nodes of a conditional's body name it as their parent.
struct Node {
  NodeKind kind;
  std::vector<std::size_t> after;  // indices of nodes in the same graph or body
  int parent = -1;                 // index of the conditional node whose body holds it, -1: the graph itself
  int body = -1;                   // which body of that conditional
  int expert = -1;                 // of a SWITCH over the experts: -1
  int bucket = -1;                 // index into the expert's buckets

  bool operator==(const Node&) const = default;
};

// Which node depends on which: copy in, gater, route, conditionals with gather, expert and scatter in their bodies. A
// node comes after those that it waits for, and after its parent. Pure.
// buckets: how many each expert has. capacity: images that fit; a single one takes an expert's first bucket.
// speculate: of a single image the first expert runs beside the gater, and the conditionals are of the others.
// Throws Error(kInput) on no experts, an expert with no bucket, or kNone.
std::vector<Node> graph_topology(const std::vector<std::size_t>& buckets, std::size_t capacity,
                                 Conditionals conditionals, bool speculate = false);

}  // namespace trt_moe::cuda
