#include "backends/cuda/conditional_graph.h"

#include <algorithm>
#include <span>
#include <utility>

#include "backends/cuda/cuda_device.h"
#include "backends/cuda/kernels.h"
#include "core/error.h"

namespace trt_moe::cuda {

namespace {

template <typename T>
T* at(std::uintptr_t address, std::size_t offset = 0) {
  return reinterpret_cast<T*>(address + offset);
}

const char* text(NodeKind kind) {
  switch (kind) {
    case NodeKind::kCopyIn: return "copy in";
    case NodeKind::kGater: return "gater";
    case NodeKind::kRoute:
    case NodeKind::kRouteImage: return "route";
    case NodeKind::kSwitch: return "SWITCH";
    case NodeKind::kIf: return "IF";
    case NodeKind::kCopyImage: return "copy image";
    case NodeKind::kGather: return "gather";
    case NodeKind::kExpert: return "model";
    case NodeKind::kScatter: return "scatter";
  }
  return "node";
}

// The kernels take these on trust.
void expect_room(const RoutedGraph& routed) {
  const auto expect = [](bool holds, const std::string& what) {
    if (!holds) throw Error(ErrorKind::kDevice, "a device-routed graph " + what);
  };
  const std::size_t capacity = routed.gater.bucket;
  std::size_t bodies = 0;
  for (const auto& buckets : routed.experts) {
    bodies += buckets.size();
    expect(!buckets.empty() && buckets.back().bucket >= capacity, "needs of every expert a bucket for the whole batch");
  }
  const auto limit = [&](std::size_t found, std::size_t most, const std::string& what) {
    expect(found >= 1 && found <= most,
           "takes 1 to " + std::to_string(most) + " " + what + ", not " + std::to_string(found));
  };
  limit(capacity, kMaxImages, "images in a batch");
  limit(routed.experts.size(), kMaxExperts, "experts");
  limit(bodies, kMaxBodies, "buckets of all experts together");
  expect(routed.classes >= 1 && routed.image_bytes >= 1, "needs images and classes");
  expect(routed.gater.input == routed.device_in + routed.layout.images, "needs the gater to read the copied images");
}

cudaGraph_t native(const CapturedModel& model) {
  const auto* const graph = dynamic_cast<const CudaGraph*>(model.graph);
  if (graph == nullptr) throw Error(ErrorKind::kDevice, "a device-routed graph holds a model of another device");
  return graph->get();
}

// Adds the nodes of one device-routed graph.
class Builder {
 public:
  Builder(const ContextScope& scope, cudaGraph_t graph, const RoutedGraph& routed)
      : scope_(scope), graph_(graph), routed_(routed), bodies_(routed.topology.size()) {
    make_route_arguments();
    for (const Node& node : routed_.topology) nodes_.push_back(add(node));
  }

  std::vector<cudaGraphNode_t> nodes() && { return std::move(nodes_); }

 private:
  void make_route_arguments();
  cudaGraphConditionalHandle& handle(const Node& node);
  cudaGraphNode_t add(const Node& node);
  cudaGraphNode_t add_copy(std::uintptr_t to, std::uintptr_t from, std::size_t bytes);
  cudaGraphNode_t add_child(const CapturedModel& model);
  cudaGraphNode_t add_conditional(const Node& node, cudaGraphConditionalNodeType type, std::size_t bodies);
  template <typename Arguments>
  cudaGraphNode_t add_kernel(const KernelLaunch& launch, const Arguments& arguments);
  GatherArguments gather_arguments(const Node& node) const;
  ScatterArguments scatter_arguments(const Node& node) const;

  const CapturedModel& model_of(const Node& node) const {
    return routed_.experts.at(static_cast<std::size_t>(node.expert)).at(static_cast<std::size_t>(node.bucket));
  }
  std::size_t most_rows(const Node& node) const { return std::min(model_of(node).bucket, routed_.gater.bucket); }
  std::int32_t* rows_of(const Node& node) const {
    return at<std::int32_t>(routed_.rows) + static_cast<std::size_t>(node.expert) * routed_.gater.bucket;
  }
  std::int32_t* count_of(const Node& node) const { return at<std::int32_t>(routed_.counts) + node.expert; }

  const ContextScope& scope_;
  cudaGraph_t graph_;
  const RoutedGraph& routed_;
  RouteArguments route_;
  RouteImageArguments route_image_;
  std::vector<cudaGraphNode_t> nodes_;
  std::vector<std::span<const cudaGraph_t>> bodies_;  // of the conditional nodes, by index; CUDA owns them

  // Of the node that is being added.
  cudaGraph_t target_ = nullptr;
  std::vector<cudaGraphNode_t> after_;
};

void Builder::make_route_arguments() {
  const RoutedLayout& layout = routed_.layout;
  route_.routing = {.images = at<std::int32_t>(routed_.device_in),
                    .weight = at<float>(routed_.device_in, layout.weight),
                    .costs = at<float>(routed_.device_in, layout.costs),
                    .logits = at<float>(routed_.gater.output),
                    .gater_logits = at<float>(routed_.out, layout.gater_logits),
                    .routes = at<std::int32_t>(routed_.out),
                    .rows = at<std::int32_t>(routed_.rows),
                    .counts = at<std::int32_t>(routed_.counts),
                    .capacity = static_cast<std::int32_t>(routed_.gater.bucket),
                    .experts = static_cast<std::int32_t>(routed_.experts.size())};
  std::uint16_t body = 0;
  for (std::size_t expert = 0; expert < routed_.experts.size(); ++expert) {
    route_image_.inputs[expert] = at<std::uint8_t>(routed_.experts[expert].front().input);
    route_.first_body[expert] = body;
    for (const CapturedModel& model : routed_.experts[expert]) {
      // No batch is larger than kMaxImages, so a larger bucket need not be told apart.
      route_.bucket[body++] = static_cast<std::uint16_t>(std::min(model.bucket, kMaxImages));
    }
  }
  route_.first_body[routed_.experts.size()] = body;
  for (const Node& node : routed_.topology) {
    if (node.kind == NodeKind::kCopyImage) route_.routing.first_conditional = node.expert + 1;
    if (node.kind != NodeKind::kSwitch && node.kind != NodeKind::kIf) continue;
    route_.ifs = node.kind == NodeKind::kIf;
    // The route kernel sets every handle in every run, so that none needs a default.
    TRT_MOE_CUDA_CHECK(scope_, cudaGraphConditionalHandleCreate(&handle(node), graph_, 0, 0));
  }
  route_image_.routing = route_.routing;
  route_image_.image = at<const std::uint8_t>(routed_.device_in, layout.images);
  route_image_.image_bytes = routed_.image_bytes;
}

cudaGraphConditionalHandle& Builder::handle(const Node& node) {
  if (node.kind == NodeKind::kSwitch) return node.expert < 0 ? route_image_.handle : route_.handles[node.expert];
  return route_.handles[route_.first_body[node.expert] + node.bucket];
}

cudaGraphNode_t Builder::add(const Node& node) {
  target_ =
      node.parent < 0 ? graph_ : bodies_.at(static_cast<std::size_t>(node.parent))[static_cast<std::size_t>(node.body)];
  after_.clear();
  for (const std::size_t index : node.after) after_.push_back(nodes_.at(index));

  switch (node.kind) {
    case NodeKind::kCopyIn: return add_copy(routed_.device_in, routed_.host_in, routed_.layout.in_bytes);
    case NodeKind::kGater: return add_child(routed_.gater);
    case NodeKind::kExpert: return add_child(model_of(node));
    case NodeKind::kRoute: return add_kernel(route_kernel(route_), route_);
    case NodeKind::kRouteImage: return add_kernel(route_image_kernel(route_image_), route_image_);
    case NodeKind::kCopyImage:
      return add_copy(model_of(node).input, routed_.device_in + routed_.layout.images, routed_.image_bytes);
    case NodeKind::kGather: {
      const GatherArguments arguments = gather_arguments(node);
      return add_kernel(gather_kernel(arguments, most_rows(node)), arguments);
    }
    case NodeKind::kScatter: {
      const ScatterArguments arguments = scatter_arguments(node);
      return add_kernel(scatter_kernel(arguments, most_rows(node)), arguments);
    }
    case NodeKind::kSwitch: {
#if CUDART_VERSION >= 12080
      const std::size_t bodies =
          node.expert < 0 ? routed_.experts.size() - static_cast<std::size_t>(route_.routing.first_conditional)
                          : routed_.experts.at(static_cast<std::size_t>(node.expert)).size();
      return add_conditional(node, cudaGraphCondTypeSwitch, bodies);
#else
      throw Error(ErrorKind::kDevice, "SWITCH nodes need a build with CUDA 12.8 or newer");
#endif
    }
    case NodeKind::kIf: return add_conditional(node, cudaGraphCondTypeIf, 1);
  }
  throw Error(ErrorKind::kDevice, "a device-routed graph has a node of an unknown kind");
}

cudaGraphNode_t Builder::add_copy(std::uintptr_t to, std::uintptr_t from, std::size_t bytes) {
  const CopyArguments arguments = copy_arguments(to, from, bytes);
  if (is_for_a_kernel(arguments)) return add_kernel(copy_kernel(arguments), arguments);
  cudaGraphNode_t added = nullptr;
  TRT_MOE_CUDA_CHECK(scope_, cudaGraphAddMemcpyNode1D(&added, target_, after_.data(), after_.size(), at<void>(to),
                                                      at<const void>(from), bytes, cudaMemcpyDefault));
  return added;
}

cudaGraphNode_t Builder::add_child(const CapturedModel& model) {
  cudaGraphNode_t added = nullptr;
  TRT_MOE_CUDA_CHECK(scope_, cudaGraphAddChildGraphNode(&added, target_, after_.data(), after_.size(), native(model)));
  return added;
}

cudaGraphNode_t Builder::add_conditional(const Node& node, cudaGraphConditionalNodeType type, std::size_t bodies) {
  cudaGraphNodeParams params{};
  params.type = cudaGraphNodeTypeConditional;
  params.conditional.handle = handle(node);
  params.conditional.type = type;
  params.conditional.size = static_cast<unsigned>(bodies);
  cudaGraphNode_t added = nullptr;
#if CUDART_VERSION >= 13000
  TRT_MOE_CUDA_CHECK(scope_, cudaGraphAddNode(&added, target_, after_.data(), nullptr, after_.size(), &params));
#else
  TRT_MOE_CUDA_CHECK(scope_, cudaGraphAddNode(&added, target_, after_.data(), after_.size(), &params));
#endif
  bodies_.at(nodes_.size()) = {params.conditional.phGraph_out, bodies};
  return added;
}

// CUDA copies the arguments into the node.
template <typename Arguments>
cudaGraphNode_t Builder::add_kernel(const KernelLaunch& launch, const Arguments& arguments) {
  void* pointers[] = {const_cast<Arguments*>(&arguments)};
  cudaKernelNodeParams params{};
  params.func = const_cast<void*>(launch.function);
  params.gridDim = launch.grid;
  params.blockDim = launch.block;
  params.kernelParams = pointers;
  cudaGraphNode_t added = nullptr;
  TRT_MOE_CUDA_CHECK(scope_, cudaGraphAddKernelNode(&added, target_, after_.data(), after_.size(), &params));
  return added;
}

GatherArguments Builder::gather_arguments(const Node& node) const {
  return {.images = at<const std::uint8_t>(routed_.device_in, routed_.layout.images),
          .input = at<std::uint8_t>(model_of(node).input),
          .rows = rows_of(node),
          .count = count_of(node),
          .image_bytes = routed_.image_bytes};
}

ScatterArguments Builder::scatter_arguments(const Node& node) const {
  return {.logits = at<const float>(model_of(node).output),
          .probabilities = at<float>(routed_.out, routed_.layout.probabilities),
          .rows = rows_of(node),
          .count = count_of(node),
          .classes = routed_.classes};
}

}  // namespace

ConditionalGraph::ConditionalGraph(std::shared_ptr<PrimaryContext> context, const RoutedGraph& routed)
    : graph_(std::move(context)), topology_(routed.topology) {
  expect_room(routed);
  const ContextScope scope(graph_.context());
  TRT_MOE_CUDA_CHECK(scope, cudaGraphCreate(graph_.out(), 0));
  nodes_ = Builder(scope, graph_.get(), routed).nodes();
}

GraphExecOwner ConditionalGraph::instantiate() const {
  const ContextScope scope(graph_.context());
  GraphExecOwner exec(graph_.shared_context());
  cudaGraphInstantiateParams params{};
  const cudaError_t status = cudaGraphInstantiateWithParams(exec.out(), graph_.get(), &params);
  if (status != cudaSuccess) scope.check(status, ("instantiating " + name_of(params.errNode_out)).c_str());
  return exec;
}

std::string ConditionalGraph::name_of(cudaGraphNode_t node) const {
  const auto found = std::find(nodes_.begin(), nodes_.end(), node);
  if (found == nodes_.end()) return "the device-routed graph";
  const Node& its = topology_[static_cast<std::size_t>(found - nodes_.begin())];
  std::string name = std::string("the device-routed graph's ") + text(its.kind) + " node";
  if (its.expert >= 0) name += " of expert " + std::to_string(its.expert);
  if (its.bucket >= 0) name += ", bucket " + std::to_string(its.bucket);
  return name;
}

}  // namespace trt_moe::cuda
