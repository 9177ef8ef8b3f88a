// DLPack capsules, made and read as https://dmlc.github.io/dlpack describes them.
#include <pybind11/stl.h>

#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bindings.h"

namespace py = pybind11;

namespace trt_moe {

namespace {

struct DlDevice {
  std::int32_t type;
  std::int32_t id;
};

struct DlType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct DlTensor {
  void* data;
  DlDevice device;
  std::int32_t dimensions;
  DlType type;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};

struct DlManagedTensor {
  DlTensor tensor;
  void* context;
  void (*deleter)(DlManagedTensor*);
};

constexpr const char* kUnused = "dltensor";

// One allocation for all that a consumer may look at.
struct Exported {
  DlManagedTensor managed{};
  std::vector<std::int64_t> shape;
  py::object owner;
};

// Called by whoever consumed the capsule, on any thread, and perhaps when there is no Python any more.
void release(DlManagedTensor* managed) {
  if (Py_IsInitialized() == 0) return;
  const py::gil_scoped_acquire acquire;
  delete static_cast<Exported*>(managed->context);
}

// A consumer renames the capsule, and calls the deleter itself.
void destroy(PyObject* capsule) {
  if (PyCapsule_IsValid(capsule, kUnused) == 0) return;
  release(static_cast<DlManagedTensor*>(PyCapsule_GetPointer(capsule, kUnused)));
}

DlType type_of(const std::string& dtype) {
  if (dtype == "float32") return {2, 32, 1};
  if (dtype == "int32") return {0, 32, 1};
  throw Error(ErrorKind::kInput, "dtype is " + dtype + "; expected float32 or int32");
}

py::capsule dlpack_capsule(std::uintptr_t address, std::vector<std::int64_t> shape, const std::string& dtype,
                           std::pair<std::int32_t, std::int32_t> device, py::object owner) {
  auto exported = std::make_unique<Exported>();
  exported->shape = std::move(shape);
  exported->owner = std::move(owner);
  exported->managed = {{reinterpret_cast<void*>(address),
                        {device.first, device.second},
                        static_cast<std::int32_t>(exported->shape.size()),
                        type_of(dtype),
                        exported->shape.data(),
                        nullptr,
                        0},
                       exported.get(),
                       &release};
  const auto capsule = py::reinterpret_steal<py::capsule>(PyCapsule_New(&exported->managed, kUnused, &destroy));
  if (!capsule) throw py::error_already_set();
  (void)exported.release();  // the capsule's, or its consumer's
  return capsule;
}

std::string name_of(const DlType& type) {
  static const char* const names[] = {"int", "uint", "float", nullptr, "bfloat", "complex", "bool"};
  const bool known = type.code < std::size(names) && names[type.code] != nullptr;
  std::string name = known ? names[type.code] : "type " + std::to_string(type.code) + " of ";
  name += std::to_string(type.bits);
  return type.lanes == 1 ? name : name + "x" + std::to_string(type.lanes);
}

using Extents = std::vector<std::int64_t>;

std::tuple<std::uintptr_t, std::string, Extents, std::optional<Extents>> read_dlpack(const py::object& capsule) {
  if (PyCapsule_IsValid(capsule.ptr(), kUnused) == 0) {
    throw Error(ErrorKind::kInput, "__dlpack__ gave " + py::repr(capsule).cast<std::string>() +
                                       "; expected an unused capsule called '" + kUnused + "'");
  }
  const auto& tensor = static_cast<const DlManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), kUnused))->tensor;
  const auto extents = [&](const std::int64_t* first) { return Extents(first, first + tensor.dimensions); };
  std::optional<Extents> strides;
  if (tensor.strides != nullptr) strides = extents(tensor.strides);
  return {reinterpret_cast<std::uintptr_t>(tensor.data) + tensor.byte_offset, name_of(tensor.type),
          extents(tensor.shape), std::move(strides)};
}

}  // namespace

void register_dlpack(py::module_& module) {
  module.def("dlpack_capsule", &dlpack_capsule, py::arg("address"), py::arg("shape"), py::arg("dtype"),
             py::arg("device"), py::arg("owner"),
             "A DLPack capsule of a C-contiguous tensor that is complete; `owner` lives until its consumer lets go.\n"
             "dtype: \"float32\" or \"int32\". device: (type, id) as DLPack numbers them.");
  module.def(
      "read_dlpack", &read_dlpack, py::arg("capsule"),
      "(address, dtype such as \"uint8\", shape, strides in elements or None: C-contiguous) of what `__dlpack__`\n"
      "gave, which is not consumed: it must live for as long as the tensor is used.");
}

}  // namespace trt_moe
