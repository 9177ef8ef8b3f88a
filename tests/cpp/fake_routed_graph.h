#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <set>
#include <stdexcept>
#include <utility>
#include <vector>

#include "backends/cuda/plan/graph_topology.h"
#include "backends/cuda/plan/route_reference.h"
#include "backends/cuda/plan/routed_graph.h"

namespace trt_moe::testing {

// Thrown at what no correct caller does.
inline void demand(bool condition, const char* what) {
  if (!condition) throw std::logic_error(what);
}

inline bool is_conditional(cuda::NodeKind kind) {
  return kind == cuda::NodeKind::kSwitch || kind == cuda::NodeKind::kIf;
}

// Whether `node` waits for `other`, of the same graph or body, straight or through others.
inline bool waits_for(const std::vector<cuda::Node>& nodes, std::size_t node, std::size_t other) {
  for (const std::size_t before : nodes[node].after) {
    demand(nodes.at(before).parent == nodes[node].parent && nodes[before].body == nodes[node].body,
           "a node waits for one of another body");
    if (before == other || waits_for(nodes, before, other)) return true;
  }
  return false;
}

// Experts before this one run whatever the routes.
inline int first_conditional(const cuda::RoutedGraph& graph) {
  return static_cast<int>(std::count_if(graph.topology.begin(), graph.topology.end(), [](const cuda::Node& node) {
    return node.kind == cuda::NodeKind::kCopyImage;
  }));
}

// Whether a node is the work of an expert that runs a lone image beside the gater.
inline bool speculates(const cuda::RoutedGraph& graph, std::size_t node) {
  const cuda::Node& its = graph.topology[node];
  return graph.gater.bucket == 1 && its.parent < 0 && its.expert >= 0 && its.expert < first_conditional(graph) &&
         (its.kind == cuda::NodeKind::kExpert || its.kind == cuda::NodeKind::kScatter);
}

// Whether a node is in a body of the one SWITCH that a single image has.
inline bool is_over_experts(const cuda::RoutedGraph& graph, std::size_t node) {
  if (graph.topology[node].parent < 0) return false;
  const cuda::Node& parent = graph.topology.at(static_cast<std::size_t>(graph.topology[node].parent));
  return parent.kind == cuda::NodeKind::kSwitch && parent.expert < 0;
}

// What kinds of nodes, of the same graph or body, write what a node reads.
inline std::vector<cuda::NodeKind> sources_of(const cuda::RoutedGraph& graph, std::size_t node) {
  using cuda::NodeKind;
  switch (graph.topology[node].kind) {
    case NodeKind::kCopyIn: return {};
    case NodeKind::kGater:
    case NodeKind::kCopyImage: return {NodeKind::kCopyIn};
    case NodeKind::kRoute:
    case NodeKind::kRouteImage: return {NodeKind::kGater};
    case NodeKind::kSwitch:
    case NodeKind::kIf: return {NodeKind::kRoute, NodeKind::kRouteImage};
    case NodeKind::kGather: return {};  // the conditional waited for it
    case NodeKind::kExpert:
      if (speculates(graph, node)) return {NodeKind::kCopyImage};
      return is_over_experts(graph, node) ? std::vector<NodeKind>{} : std::vector{NodeKind::kGather};
    case NodeKind::kScatter:
      if (speculates(graph, node)) return {NodeKind::kExpert, NodeKind::kRoute, NodeKind::kRouteImage};
      return {NodeKind::kExpert};
  }
  return {};
}

// Every node of the graph waits for what it reads, and every expert has each of its buckets once.
inline void check_routed_graph(const cuda::RoutedGraph& graph) {
  using cuda::NodeKind;
  const std::vector<cuda::Node>& nodes = graph.topology;
  std::multiset<std::pair<int, int>> scatters;
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    const std::vector<NodeKind> sources = sources_of(graph, i);
    bool found = sources.empty();
    for (std::size_t j = 0; j < nodes.size(); ++j) {
      const bool reads = std::find(sources.begin(), sources.end(), nodes[j].kind) != sources.end();
      if (!reads || nodes[j].parent != nodes[i].parent || nodes[j].body != nodes[i].body) continue;
      demand(waits_for(nodes, i, j), "a node does not wait for what it reads");
      found = true;
    }
    demand(found, "nothing writes what a node reads");
    if (nodes[i].kind == NodeKind::kGather || nodes[i].kind == NodeKind::kExpert ||
        nodes[i].kind == NodeKind::kScatter) {
      if (!speculates(graph, i)) {
        demand(nodes[i].parent >= 0, "expert work outside a conditional");
        const cuda::Node& parent = nodes.at(static_cast<std::size_t>(nodes[i].parent));
        const int its = is_over_experts(graph, i) ? nodes[i].body + first_conditional(graph) : parent.expert;
        demand(is_conditional(parent.kind) && its == nodes[i].expert, "expert work outside its expert's conditional");
      }
    }
    if (nodes[i].kind == NodeKind::kScatter) scatters.emplace(nodes[i].expert, nodes[i].bucket);
  }
  std::size_t expected = 0;
  for (std::size_t expert = 0; expert < graph.experts.size(); ++expert) {
    for (std::size_t bucket = 0; bucket < graph.experts[expert].size(); ++bucket, ++expected) {
      demand(scatters.count({static_cast<int>(expert), static_cast<int>(bucket)}) == 1, "a bucket has no one body");
    }
    demand(graph.experts[expert].back().bucket >= graph.gater.bucket, "a batch can outgrow an expert");
  }
  demand(scatters.size() == expected, "a body for a bucket that is not there");
  demand(graph.gater.input == graph.device_in + graph.layout.images, "the gater does not read what is copied in");
}

// Runs a checked graph. Of nodes that are ready the last goes first, so that an order no edge asks for shows.
class RoutedGraphRun {
 public:
  using RunGraph = std::function<void(const cuda::Graph&)>;

  RoutedGraphRun(const cuda::RoutedGraph& graph, const RunGraph& run_graph) : graph_(graph), run_graph_(run_graph) {}

  void run(int parent, int body) {
    std::set<std::size_t> left;
    for (std::size_t i = 0; i < graph_.topology.size(); ++i) {
      if (graph_.topology[i].parent == parent && graph_.topology[i].body == body) left.insert(i);
    }
    while (!left.empty()) {
      const auto ready = std::find_if(left.rbegin(), left.rend(), [&](std::size_t node) {
        const auto& after = graph_.topology[node].after;
        return std::none_of(after.begin(), after.end(), [&](std::size_t before) { return left.contains(before); });
      });
      demand(ready != left.rend(), "nodes wait for each other");
      const std::size_t node = *ready;
      left.erase(node);
      run_node(node);
    }
  }

 private:
  template <typename T>
  static T* at(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
  }

  void run_node(std::size_t index) {
    const cuda::Node& node = graph_.topology[index];
    switch (node.kind) {
      case cuda::NodeKind::kCopyIn: copy(graph_.device_in, graph_.host_in, graph_.layout.in_bytes); break;
      case cuda::NodeKind::kGater: run_graph_(*graph_.gater.graph); break;
      case cuda::NodeKind::kRoute: route(); break;
      case cuda::NodeKind::kRouteImage: route_image(); break;
      case cuda::NodeKind::kSwitch: run(static_cast<int>(index), taken(node)); break;
      case cuda::NodeKind::kIf:
        if (taken(node) == node.bucket) run(static_cast<int>(index), 0);
        break;
      case cuda::NodeKind::kCopyImage:
        copy(model(node).input, graph_.device_in + graph_.layout.images, graph_.image_bytes);
        break;
      case cuda::NodeKind::kGather: gather(node); break;
      case cuda::NodeKind::kExpert: run_graph_(*model(node).graph); break;
      case cuda::NodeKind::kScatter: scatter(node); break;
    }
  }

  static void copy(std::uintptr_t to, std::uintptr_t from, std::size_t bytes) {
    if (to != from) std::memcpy(at<void>(to), at<const void>(from), bytes);
  }

  const cuda::CapturedModel& model(const cuda::Node& node) const {
    return graph_.experts[static_cast<std::size_t>(node.expert)][static_cast<std::size_t>(node.bucket)];
  }
  // The body to run; one that is not there runs nothing.
  int taken(const cuda::Node& node) const {
    if (node.expert < 0) return *at<std::int32_t>(graph_.out) - first_conditional(graph_);
    return buckets_.at(static_cast<std::size_t>(node.expert));
  }
  std::size_t rows_of(const cuda::Node& node) const {
    return static_cast<std::size_t>(at<std::int32_t>(graph_.counts)[node.expert]);
  }
  std::size_t row(const cuda::Node& node, std::size_t i) const {
    const std::size_t first = static_cast<std::size_t>(node.expert) * graph_.gater.bucket;
    return static_cast<std::size_t>(at<std::int32_t>(graph_.rows)[first + i]);
  }

  void route() {
    const std::size_t experts = graph_.experts.size();
    const auto images = static_cast<std::size_t>(*at<std::int32_t>(graph_.device_in));
    const float weight = *at<float>(graph_.device_in + graph_.layout.weight);
    const float* const logits = at<float>(graph_.gater.output);
    std::vector<std::vector<std::size_t>> sizes;
    for (const auto& expert : graph_.experts) {
      sizes.emplace_back();
      for (const cuda::CapturedModel& captured : expert) sizes.back().push_back(captured.bucket);
    }
    const cuda::RoutedBatch batch =
        cuda::route_reference({logits, images * experts}, {at<float>(graph_.device_in + graph_.layout.costs), experts},
                              weight, graph_.gater.bucket, sizes);
    std::memcpy(at<void>(graph_.out), batch.routes.data(), images * sizeof(std::int32_t));
    std::memcpy(at<void>(graph_.out + graph_.layout.gater_logits), logits, images * experts * sizeof(float));
    std::memcpy(at<void>(graph_.counts), batch.counts.data(), experts * sizeof(std::int32_t));
    std::memcpy(at<void>(graph_.rows), batch.rows.data(), batch.rows.size() * sizeof(std::int32_t));
    buckets_ = batch.buckets;
  }

  void route_image() {
    route();
    const std::int32_t expert = *at<std::int32_t>(graph_.out);
    if (expert < first_conditional(graph_)) return;
    copy(graph_.experts[static_cast<std::size_t>(expert)][0].input, graph_.device_in + graph_.layout.images,
         graph_.image_bytes);
  }

  void gather(const cuda::Node& node) {
    for (std::size_t i = 0; i < rows_of(node); ++i) {
      std::memcpy(at<void>(model(node).input + i * graph_.image_bytes),
                  at<const void>(graph_.device_in + graph_.layout.images + row(node, i) * graph_.image_bytes),
                  graph_.image_bytes);
    }
  }

  void scatter(const cuda::Node& node) {
    for (std::size_t i = 0; i < rows_of(node); ++i) {
      const float* const logits = at<const float>(model(node).output) + i * graph_.classes;
      float* const out = at<float>(graph_.out + graph_.layout.probabilities) + row(node, i) * graph_.classes;
      double sum = 0;
      bool finite = true;
      const float largest = *std::max_element(logits, logits + graph_.classes);
      for (std::size_t c = 0; c < graph_.classes; ++c) {
        finite = finite && std::isfinite(logits[c]);
        sum += std::exp(static_cast<double>(logits[c] - largest));
      }
      for (std::size_t c = 0; c < graph_.classes; ++c) {
        out[c] = finite ? static_cast<float>(std::exp(static_cast<double>(logits[c] - largest)) / sum)
                        : std::numeric_limits<float>::quiet_NaN();
      }
    }
  }

  const cuda::RoutedGraph& graph_;
  const RunGraph& run_graph_;
  std::vector<std::int32_t> buckets_;  // what the route kernel sets the conditionals to
};

inline void run_routed_graph(const cuda::RoutedGraph& graph, const RoutedGraphRun::RunGraph& run_graph) {
  // What is not written shows as -1 and NaN, not as the answer of the last run.
  std::memset(reinterpret_cast<void*>(graph.out), 0xFF, graph.layout.out_bytes);
  RoutedGraphRun(graph, run_graph).run(-1, -1);
}

}  // namespace trt_moe::testing
