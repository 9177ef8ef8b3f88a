#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "backends/cuda/plan/graph_topology.h"

namespace trt_moe::cuda {

class Graph;

// A model captured for one bucket, at fixed addresses on the device.
struct CapturedModel {
  const Graph* graph = nullptr;
  std::uintptr_t input = 0;   // uint8 [bucket, image_bytes]
  std::uintptr_t output = 0;  // float32 [bucket, outputs]
  std::size_t bucket = 0;
};

// Where things lie in the two blocks that host and device share, in bytes from the block's start.
// In: images int32, latency weight float32, cost of each expert float32, then the images.
// Out: route int32 of each image (-1: a logit is not finite), gater logits float32, probabilities float32.
// Rows of probabilities of which a logit is not finite are NaN; what lies past the last image is unspecified.
struct RoutedLayout {
  std::size_t weight = 0;
  std::size_t costs = 0;
  std::size_t images = 0;    // the same at any capacity
  std::size_t in_bytes = 0;  // that the graph itself brings: all of it, or what is before the images
  std::size_t gater_logits = 0;
  std::size_t probabilities = 0;
  std::size_t out_bytes = 0;

  bool operator==(const RoutedLayout&) const = default;
};

// Pure. Every part starts at a multiple of 256 bytes.
RoutedLayout routed_layout(std::size_t capacity, std::size_t experts, std::size_t classes, std::size_t image_bytes);

// All that one device-routed graph is made of; what it points to outlives the graph.
struct RoutedGraph {
  std::vector<Node> topology;
  CapturedModel gater;                              // its bucket is the capacity of this graph
  std::vector<std::vector<CapturedModel>> experts;  // [expert][bucket], buckets ascending
  std::size_t classes = 0;
  std::size_t image_bytes = 0;
  RoutedLayout layout;
  std::uintptr_t host_in = 0;    // pinned block "in"
  std::uintptr_t device_in = 0;  // its copy: device_in + layout.images is the gater's input
  std::uintptr_t rows = 0;       // device: int32 [experts, capacity], each expert's images in input order
  std::uintptr_t counts = 0;     // device: int32 [experts]
  std::uintptr_t out = 0;        // pinned block "out", which the kernels write
};

}  // namespace trt_moe::cuda
