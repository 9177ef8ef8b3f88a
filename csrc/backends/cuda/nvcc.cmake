# Enables the CUDA language where TRT_MOE_CUDA asks for it, and sets trt_moe_with_cuda, trt_moe_cuda_headers and
# trt_moe_cuda_targets.
set(trt_moe_with_cuda OFF)
if(NOT TRT_MOE_CUDA MATCHES "^(AUTO|ON|OFF|ON_HOST)$")
  message(FATAL_ERROR "TRT_MOE_CUDA is '${TRT_MOE_CUDA}'; it is AUTO, ON, OFF or ON_HOST")
endif()
if(TRT_MOE_CUDA STREQUAL "OFF")
  return()
endif()
if(TRT_MOE_CUDA STREQUAL "ON_HOST")
  if(NOT TRT_MOE_CUDA_HEADERS)
    message(FATAL_ERROR "TRT_MOE_CUDA=ON_HOST needs TRT_MOE_CUDA_HEADERS, such as /usr/local/cuda/include")
  endif()
  set(trt_moe_with_cuda ON)
  set(trt_moe_cuda_headers ${TRT_MOE_CUDA_HEADERS})
  set(trt_moe_cuda_targets tests)
  return()
endif()

set(oldest_cuda 12.4)  # the first with conditional graph nodes

if(CMAKE_CUDA_COMPILER)
  set(nvcc ${CMAKE_CUDA_COMPILER})
elseif(DEFINED ENV{CUDACXX})
  set(nvcc $ENV{CUDACXX})
else()
  # Where pip's nvidia-cuda-nvcc lies. In pip's isolated builds sysconfig still names the user's environment.
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c
      "import sys, sysconfig; print(';'.join(p + '/nvidia' for p in [*sys.path, sysconfig.get_path('purelib')] if p))"
    OUTPUT_VARIABLE pip_folders OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  list(TRANSFORM pip_folders APPEND "/cu*/bin")
  file(GLOB pip_folders LIST_DIRECTORIES true ${pip_folders})
  find_program(TRT_MOE_NVCC nvcc PATHS /usr/local/cuda/bin ${pip_folders})
  set(nvcc ${TRT_MOE_NVCC})
endif()

if(NOT nvcc)
  set(problem "no nvcc was found on the PATH, under /usr/local/cuda or in ${Python_EXECUTABLE}'s packages")
else()
  # pip's nvcc looks for its libraries in lib64, and pip's runtime has them in lib.
  cmake_path(GET nvcc PARENT_PATH libraries)
  cmake_path(SET libraries NORMALIZE ${libraries}/../lib)
  if(EXISTS ${libraries}/libcudart_static.a)
    set(ENV{CUDAFLAGS} "$ENV{CUDAFLAGS} -L${libraries}")
  endif()
  execute_process(COMMAND ${nvcc} --version OUTPUT_VARIABLE nvcc_version ERROR_QUIET)
  string(REGEX MATCH "release ([0-9.]+)" nvcc_version "${nvcc_version}")
  set(nvcc_version ${CMAKE_MATCH_1})
  if(NOT nvcc_version OR nvcc_version VERSION_LESS oldest_cuda)
    set(problem "${nvcc} is CUDA '${nvcc_version}', and trt-moe needs ${oldest_cuda} or newer")
  elseif(NOT CMAKE_CUDA_COMPILER)
    set(ENV{CUDACXX} ${nvcc})
    unset(CMAKE_CUDA_COMPILER CACHE)  # an earlier check may have failed
    include(CheckLanguage)
    check_language(CUDA)
    if(NOT CMAKE_CUDA_COMPILER)
      set(problem "${nvcc} compiles nothing; `${nvcc} -c` of an empty .cu file shows why")
    endif()
  endif()
endif()
if(problem)
  if(TRT_MOE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "TRT_MOE_CUDA=ON: ${problem}. Install the CUDA toolkit, or: pip install nvidia-cuda-nvcc "
      "nvidia-cuda-crt nvidia-cuda-runtime nvidia-nvvm (all of one version)")
  endif()
  message(STATUS "CUDA backend: off, ${problem}")
  return()
endif()

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  # Turing to Blackwell, as far as this nvcc knows them. The last two come with PTX: 9.0's for what lies between
  # them (10.x and 11.0), the newest for what comes later.
  execute_process(COMMAND ${nvcc} --list-gpu-arch OUTPUT_VARIABLE known COMMAND_ERROR_IS_FATAL ANY)
  foreach(architecture 75-real 80-real 86-real 87-real 89-real 90 120)
    string(REGEX MATCH "[0-9]+" number ${architecture})
    if(known MATCHES "compute_${number}\n")
      list(APPEND CMAKE_CUDA_ARCHITECTURES ${architecture})
    endif()
  endforeach()
endif()
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 17)  # the newest that CMake 3.25 knows of nvcc
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
# As nvcc names them: 90-real is sm_90, 90-virtual is compute_90 (PTX), 90 is both.
list(TRANSFORM CMAKE_CUDA_ARCHITECTURES REPLACE "^([0-9a-z]+)$" "sm_\\1 compute_\\1" OUTPUT_VARIABLE trt_moe_cuda_targets)
list(TRANSFORM trt_moe_cuda_targets REPLACE "^(.+)-real$" "sm_\\1")
list(TRANSFORM trt_moe_cuda_targets REPLACE "^(.+)-virtual$" "compute_\\1")
list(JOIN trt_moe_cuda_targets " " trt_moe_cuda_targets)
set(trt_moe_with_cuda ON)
set(trt_moe_cuda_headers ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
message(STATUS "CUDA backend: on, nvcc ${nvcc_version} (${nvcc}) for ${trt_moe_cuda_targets}")
