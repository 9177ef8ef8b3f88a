// CUDA graphs on the CPU. Nodes that do not wait for each other run in another order each time.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "blocks.h"
#include "runtime.h"

using namespace on_host;

namespace {

[[noreturn]] void wrong(const char* what) {
  std::fprintf(stderr, "a CUDA graph %s\n", what);
  std::abort();
}

bool has_conditionals(const CUgraph_st& graph) {
  return !graph.handles.empty() || std::any_of(graph.nodes.begin(), graph.nodes.end(), [](const auto& node) {
    return node->type == cudaGraphNodeTypeConditional;
  });
}

// What the body of a conditional node may hold.
bool fits_a_body(const CUgraph_st& graph) {
  return std::all_of(graph.nodes.begin(), graph.nodes.end(), [](const auto& node) {
    switch (node->type) {
      case cudaGraphNodeTypeKernel:
      case cudaGraphNodeTypeMemset:
      case cudaGraphNodeTypeEmpty: return true;
      case cudaGraphNodeTypeMemcpy:
        return memory_of(node->copy.srcPtr.ptr) != Memory::kPageable &&
               memory_of(node->copy.dstPtr.ptr) != Memory::kPageable;
      case cudaGraphNodeTypeGraph: return fits_a_body(*node->child);
      case cudaGraphNodeTypeConditional:
        return std::all_of(node->bodies.begin(), node->bodies.end(),
                           [](const auto& body) { return fits_a_body(*body); });
      default: return false;
    }
  });
}

cudaGraphNode_t conditional_that_does_not_fit(const CUgraph_st& graph) {
  for (const auto& node : graph.nodes) {
    for (const auto& body : node->bodies) {
      if (!fits_a_body(*body)) return node.get();
    }
  }
  return nullptr;
}

std::size_t uses(const CUgraph_st& graph, cudaGraphConditionalHandle handle) {
  std::size_t count = 0;
  for (const auto& node : graph.nodes) {
    count += node->type == cudaGraphNodeTypeConditional && node->handle == handle ? 1 : 0;
    for (const auto& body : node->bodies) count += uses(*body, handle);
  }
  return count;
}

void forget(const CUgraph_st& graph) {
  const std::lock_guard lock(conditionals().mutex);
  for (const cudaGraphConditionalHandle handle : graph.handles) conditionals().set.erase(handle);
}

unsigned value_of(cudaGraphConditionalHandle handle) {
  const std::lock_guard lock(conditionals().mutex);
  const auto found = conditionals().set.find(handle);
  if (found == conditionals().set.end()) wrong("comes to a conditional node whose handle nobody has set");
  if (found->second.times != 1) wrong("sets a conditional handle more than once");
  return found->second.value;
}

void run(const CUgraph_st& graph);

void run(const CUgraphNode_st& node) {
  if (node.work) node.work();
  if (node.child) run(*node.child);
  if (node.type != cudaGraphNodeTypeConditional) return;
  const unsigned value = value_of(node.handle);
  const std::size_t body = node.is_switch ? value : (value != 0 ? 0 : node.bodies.size());
  if (body < node.bodies.size()) run(*node.bodies[body]);
}

void run(const CUgraph_st& graph) {
  const std::size_t count = graph.nodes.size();
  std::vector<bool> done(count);
  std::vector<char> marks(count);
  Apart apart;
  for (std::size_t left = count; left > 0 && loss() == cudaSuccess; --left) {
    std::vector<std::size_t> ready;
    for (std::size_t i = 0; i < count; ++i) {
      const auto& after = graph.nodes[i]->after;
      if (!done[i] && std::all_of(after.begin(), after.end(), [&](std::size_t before) { return done[before]; })) {
        ready.push_back(i);
      }
    }
    const std::size_t chosen = ready[roll(static_cast<unsigned>(ready.size()))];
    const CUgraphNode_st& node = *graph.nodes[chosen];
    std::vector<char*> after;
    for (const std::size_t before : node.after) after.push_back(&marks[before]);
    apart.run(
        after.data(), after.size(), &marks[chosen], node.early,
        [](void* context) { ::run(*static_cast<const CUgraphNode_st*>(context)); }, const_cast<CUgraphNode_st*>(&node));
    done[chosen] = true;
  }
}

cudaError_t add(cudaGraphNode_t* added, cudaGraph_t graph, const cudaGraphNode_t* after, std::size_t count,
                std::unique_ptr<CUgraphNode_st> node) {
  if (const cudaError_t status = enter(); status != cudaSuccess) return answer(status);
  const auto indices = graph->indices(after, count);
  if (!indices || !node) return answer(cudaErrorInvalidValue);
  *added = graph->add(std::move(node), *indices);
  return cudaSuccess;
}

cudaError_t add_conditional(cudaGraphNode_t* added, cudaGraph_t graph, const cudaGraphNode_t* after, std::size_t count,
                            cudaGraphNodeParams* params) {
  cudaConditionalNodeParams& wanted = params->conditional;
  if (params->type != cudaGraphNodeTypeConditional) return answer(cudaErrorNotSupported);
  const CUgraph_st* root = graph;
  while (root->parent != nullptr) root = root->parent;
  const bool its_own = std::find(root->handles.begin(), root->handles.end(), wanted.handle) != root->handles.end();
  bool is_switch = false;
#if CUDART_VERSION >= 12080
  is_switch = wanted.type == cudaGraphCondTypeSwitch;
#endif
  const bool fits = is_switch ? wanted.size >= 1 : wanted.type == cudaGraphCondTypeIf && wanted.size == 1;
  if (!its_own || !fits) return answer(cudaErrorInvalidValue);
  auto node = std::make_unique<CUgraphNode_st>();
  node->type = cudaGraphNodeTypeConditional;
  node->handle = wanted.handle;
  node->is_switch = is_switch;
  for (unsigned i = 0; i < wanted.size; ++i) {
    node->bodies.push_back(std::make_unique<CUgraph_st>());
    node->bodies.back()->parent = graph;
    node->shown_bodies.push_back(node->bodies.back().get());
  }
  wanted.phGraph_out = node->shown_bodies.data();
  return add(added, graph, after, count, std::move(node));
}

}  // namespace

std::unique_ptr<CUgraph_st> CUgraph_st::clone() const {
  auto copy = std::make_unique<CUgraph_st>();
  copy->handles = handles;
  for (const auto& node : nodes) {
    auto& its = copy->nodes.emplace_back(std::make_unique<CUgraphNode_st>());
    its->type = node->type;
    its->after = node->after;
    its->early = node->early;
    its->work = node->work;
    its->copy = node->copy;
    if (node->child) its->child = node->child->clone();
    its->handle = node->handle;
    its->is_switch = node->is_switch;
    for (const auto& body : node->bodies) its->bodies.push_back(body->clone());
  }
  return copy;
}

cudaGraphNode_t CUgraph_st::add(std::unique_ptr<CUgraphNode_st> node, std::vector<std::size_t> after) {
  node->after = std::move(after);
  nodes.push_back(std::move(node));
  return nodes.back().get();
}

std::unique_ptr<std::vector<std::size_t>> CUgraph_st::indices(const cudaGraphNode_t* of, std::size_t count) const {
  auto found = std::make_unique<std::vector<std::size_t>>();
  for (std::size_t i = 0; i < count; ++i) {
    const auto place = std::find_if(nodes.begin(), nodes.end(), [&](const auto& node) { return node.get() == of[i]; });
    if (place == nodes.end()) return nullptr;
    found->push_back(static_cast<std::size_t>(place - nodes.begin()));
  }
  return found;
}

// A graph that can be launched, one run at a time.
struct CUgraphExec_st {
  struct State {
    std::unique_ptr<CUgraph_st> graph;
    std::mutex running;
  };
  std::shared_ptr<State> state = std::make_shared<State>();
  std::atomic<bool> launching{false};
  CUgraph_st* of = nullptr;  // where it has conditional nodes, and so may have this one instance only
};

extern "C" {

cudaError_t cudaGraphCreate(cudaGraph_t* graph, unsigned) {
  if (const cudaError_t status = enter(); status != cudaSuccess) return answer(status);
  *graph = new CUgraph_st;
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  if (graph->has_instance) wrong("with conditional nodes is destroyed before its instance");
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphConditionalHandleCreate(cudaGraphConditionalHandle* handle, cudaGraph_t graph, unsigned,
                                             unsigned) {
  static std::atomic<cudaGraphConditionalHandle> last{0};
  if (const cudaError_t status = enter(); status != cudaSuccess) return answer(status);
  *handle = ++last;
  graph->handles.push_back(*handle);
  return cudaSuccess;
}

cudaError_t cudaGraphAddMemcpyNode1D(cudaGraphNode_t* added, cudaGraph_t graph, const cudaGraphNode_t* after,
                                     std::size_t count, void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
  return add(added, graph, after, count, copy_node(to, from, bytes));
}

cudaError_t cudaGraphAddChildGraphNode(cudaGraphNode_t* added, cudaGraph_t graph, const cudaGraphNode_t* after,
                                       std::size_t count, cudaGraph_t child) {
  if (has_conditionals(*child)) return answer(cudaErrorNotSupported);
  auto node = std::make_unique<CUgraphNode_st>();
  node->type = cudaGraphNodeTypeGraph;
  node->child = child->clone();
  return add(added, graph, after, count, std::move(node));
}

cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t* added, cudaGraph_t graph, const cudaGraphNode_t* after,
                                   std::size_t count, const cudaKernelNodeParams* params) {
  return add(added, graph, after, count,
             kernel_node(params->func, params->gridDim, params->blockDim, params->kernelParams));
}

#if CUDART_VERSION >= 13000
cudaError_t cudaGraphAddNode(cudaGraphNode_t* added, cudaGraph_t graph, const cudaGraphNode_t* after,
                             const cudaGraphEdgeData*, std::size_t count, cudaGraphNodeParams* params) {
#else
cudaError_t cudaGraphAddNode(cudaGraphNode_t* added, cudaGraph_t graph, const cudaGraphNode_t* after, std::size_t count,
                             cudaGraphNodeParams* params) {
#endif
  return add_conditional(added, graph, after, count, params);
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, std::size_t* count) {
  if (nodes != nullptr) {
    for (std::size_t i = 0; i < *count; ++i) nodes[i] = graph->nodes.at(i).get();
  }
  *count = graph->nodes.size();
  return cudaSuccess;
}

cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, cudaGraphNodeType* type) {
  *type = node->type;
  return cudaSuccess;
}

cudaError_t cudaGraphKernelNodeGetAttribute(cudaGraphNode_t, cudaLaunchAttributeID, cudaLaunchAttributeValue* value) {
  *value = {};
  return cudaSuccess;
}

cudaError_t cudaGraphMemcpyNodeGetParams(cudaGraphNode_t node, cudaMemcpy3DParms* params) {
  *params = node->copy;
  return cudaSuccess;
}

cudaError_t cudaGraphChildGraphNodeGetGraph(cudaGraphNode_t node, cudaGraph_t* graph) {
  *graph = node->child.get();
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithParams(cudaGraphExec_t* exec, cudaGraph_t graph,
                                           cudaGraphInstantiateParams* params) {
  if (const cudaError_t status = enter_beside_captures(); status != cudaSuccess) return answer(status);
  params->errNode_out = conditional_that_does_not_fit(*graph);
  const bool handles_are_used = std::all_of(graph->handles.begin(), graph->handles.end(),
                                            [&](const auto& handle) { return uses(*graph, handle) == 1; });
  if (params->errNode_out != nullptr || graph->has_instance || !handles_are_used) return answer(cudaErrorInvalidValue);
  *exec = new CUgraphExec_st;
  (*exec)->state->graph = graph->clone();
  if (has_conditionals(*graph)) {
    (*exec)->of = graph;
    graph->has_instance = true;
  }
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  cudaGraphInstantiateParams params{};
  return cudaGraphInstantiateWithParams(exec, graph, &params);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  if (exec->of != nullptr) exec->of->has_instance = false;
  delete exec;
  return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return answer(enter()); }

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  auto node = std::make_unique<CUgraphNode_st>();
  node->type = cudaGraphNodeTypeGraph;
  node->work = [state = exec->state] {
    const std::lock_guard lock(state->running);
    forget(*state->graph);
    run(*state->graph);
  };
  if (exec->launching.exchange(true)) wrong("is launched by two threads at once");
  const cudaError_t status = submit(stream, std::move(node));
  exec->launching = false;
  return answer(status);
}

}  // extern "C"
