#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "core/error.h"
#include "core/tensor_view.h"

namespace trt_moe {

// One function a bound thing; module.cc calls them all.
void register_errors(pybind11::module_& module);
void register_system(pybind11::module_& module);
void register_routing(pybind11::module_& module);
void register_model(pybind11::module_& module);
void register_call_times(pybind11::module_& module);
void register_pipeline(pybind11::module_& module);
void register_dlpack(pybind11::module_& module);
void register_cuda(pybind11::module_& module);
void register_cuda_plan(pybind11::module_& module);

// The Python exception object for a failure.
pybind11::object python_error(const Failure& failure);

// Called without the GIL while a caller waits, so that Ctrl-C reaches Python.
void check_signals();

// A view of C-contiguous uint8 [N,H,W,C] images. Throws Error(kInput) that says what was found.
ImageBatchView image_batch(const pybind11::array& images, const ImageShape& expected);
// The same for one [H,W,C] image.
const std::uint8_t* single_image(const pybind11::array& image, const ImageShape& expected);

}  // namespace trt_moe
