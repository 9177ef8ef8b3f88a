#include <string>

#include "bindings/bindings.h"
#include "core/error.h"

namespace py = pybind11;

namespace trt_moe {

namespace {

std::string found(const py::array& array) {
  std::string shape;
  for (py::ssize_t i = 0; i < array.ndim(); ++i) shape += (i == 0 ? "" : ", ") + std::to_string(array.shape(i));
  return py::str(array.dtype()).cast<std::string>() + " [" + shape + "]";
}

std::string expected_text(const ImageShape& shape, const char* batch) {
  return "uint8 [" + std::string(batch) + std::to_string(shape.height) + ", " + std::to_string(shape.width) + ", " +
         std::to_string(shape.channels) + "]";
}

bool fits(const py::array& array, py::ssize_t leading, const ImageShape& shape) {
  return py::isinstance<py::array_t<std::uint8_t>>(array) && array.ndim() == leading + 3 &&
         array.shape(leading) == static_cast<py::ssize_t>(shape.height) &&
         array.shape(leading + 1) == static_cast<py::ssize_t>(shape.width) &&
         array.shape(leading + 2) == static_cast<py::ssize_t>(shape.channels) &&
         (array.flags() & py::array::c_style) != 0;
}

}  // namespace

ImageBatchView image_batch(const py::array& images, const ImageShape& expected) {
  if (!fits(images, 1, expected) || images.shape(0) == 0) {
    std::string hint = "read and resize files with trt_moe.load_images(paths, router.bundle)";
    if (fits(images, 0, expected)) hint = "one image is a batch of one: pass image[None]";
    if (images.ndim() == 4 && images.shape(0) == 0) hint = "the batch is empty: pass at least one image";
    throw Error(ErrorKind::kInput, "images are " + found(images) + "; expected C-contiguous " +
                                       expected_text(expected, "N, ") + "; " + hint);
  }
  return {static_cast<const std::uint8_t*>(images.data()), static_cast<std::size_t>(images.shape(0)), expected.bytes()};
}

const std::uint8_t* single_image(const py::array& image, const ImageShape& expected) {
  if (!fits(image, 0, expected)) {
    throw Error(ErrorKind::kInput, "the image is " + found(image) + "; expected C-contiguous " +
                                       expected_text(expected, "") +
                                       "; read and resize files with trt_moe.load_images(paths, router.bundle)");
  }
  return static_cast<const std::uint8_t*>(image.data());
}

}  // namespace trt_moe
