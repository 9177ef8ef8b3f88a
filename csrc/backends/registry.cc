#include "backends/registry.h"

#include "core/error.h"
#ifdef TRT_MOE_WITH_OPENVINO
#include "backends/openvino/openvino_backend.h"
#endif

namespace trt_moe {

std::vector<std::string> built_backends() {
  std::vector<std::string> names;
#ifdef TRT_MOE_WITH_OPENVINO
  names.emplace_back("openvino");
#endif
  return names;
}

std::shared_ptr<Backend> make_backend(const std::string& name) {
#ifdef TRT_MOE_WITH_OPENVINO
  if (name == "openvino") return make_openvino_backend();
#endif
  std::string built;
  for (const std::string& other : built_backends()) built += (built.empty() ? "" : ", ") + other;
  throw Error(ErrorKind::kDevice, "this build of trt-moe has no backend '" + name + "'; it has: " + built +
                                      ". `trt-moe doctor` says what each backend needs");
}

}  // namespace trt_moe
