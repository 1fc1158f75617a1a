# Finds the libraries that run models. Each is optional: for a missing one, a message names the variable to set.

set(ONNXRUNTIME_ROOT "$ENV{ONNXRUNTIME_ROOT}" CACHE PATH "ONNX Runtime: a folder with include/ and lib/")
set(TENSORRT_ROOT "$ENV{TENSORRT_ROOT}" CACHE PATH "TensorRT or TensorRT for RTX: a folder with include/ and lib/")

function(dyvit_imported target include library)
  add_library(${target} UNKNOWN IMPORTED)
  set_target_properties(${target} PROPERTIES IMPORTED_LOCATION "${library}")
  target_include_directories(${target} SYSTEM INTERFACE "${include}")
endfunction()

# ONNX Runtime: target dyvit_onnxruntime
if(ONNXRUNTIME_ROOT)
  find_path(ONNXRUNTIME_INCLUDE onnxruntime_cxx_api.h PATHS "${ONNXRUNTIME_ROOT}"
            PATH_SUFFIXES include include/onnxruntime NO_DEFAULT_PATH)
  find_library(ONNXRUNTIME_LIBRARY onnxruntime PATHS "${ONNXRUNTIME_ROOT}" PATH_SUFFIXES lib lib64 NO_DEFAULT_PATH)
  if(NOT ONNXRUNTIME_INCLUDE OR NOT ONNXRUNTIME_LIBRARY)
    message(FATAL_ERROR "ONNXRUNTIME_ROOT=${ONNXRUNTIME_ROOT} has no include/onnxruntime_cxx_api.h and lib/libonnxruntime.so; "
                        "name the folder of a release archive, or one that scripts/onnxruntime_sdk made.")
  endif()
  dyvit_imported(dyvit_onnxruntime "${ONNXRUNTIME_INCLUDE}" "${ONNXRUNTIME_LIBRARY}")
else()
  find_package(onnxruntime CONFIG QUIET)
  if(onnxruntime_FOUND)
    add_library(dyvit_onnxruntime ALIAS onnxruntime::onnxruntime)
  else()
    message(STATUS "dyvit: building without ONNX files and dyvit-run, because ONNX Runtime was not found; "
                   "set ONNXRUNTIME_ROOT to a folder with include/ and lib/")
  endif()
endif()

# TensorRT, its CUDA runtime and the hash of plans: target dyvit_tensorrt
if(TENSORRT_ROOT)
  find_path(TENSORRT_INCLUDE NvInferRuntime.h PATHS "${TENSORRT_ROOT}" PATH_SUFFIXES include NO_DEFAULT_PATH)
  find_library(TENSORRT_LIBRARY NAMES nvinfer tensorrt_rtx PATHS "${TENSORRT_ROOT}" PATH_SUFFIXES lib lib64
               NO_DEFAULT_PATH)
  if(NOT TENSORRT_INCLUDE OR NOT TENSORRT_LIBRARY)
    message(FATAL_ERROR "TENSORRT_ROOT=${TENSORRT_ROOT} has no include/NvInferRuntime.h and lib/libnvinfer.so or "
                        "lib/libtensorrt_rtx.so; name the folder of a release archive.")
  endif()
  find_package(CUDAToolkit QUIET)
  find_package(OpenSSL QUIET COMPONENTS Crypto)
  if(NOT CUDAToolkit_FOUND OR NOT OPENSSL_FOUND)
    message(FATAL_ERROR "TENSORRT_ROOT is set, and TensorRT also needs the CUDA toolkit (set CUDAToolkit_ROOT) and "
                        "OpenSSL, which hashes plans (libssl-dev).")
  endif()
  dyvit_imported(dyvit_tensorrt "${TENSORRT_INCLUDE}" "${TENSORRT_LIBRARY}")
  target_link_libraries(dyvit_tensorrt INTERFACE CUDA::cudart OpenSSL::Crypto)
  set(DYVIT_TENSORRT_FORMAT trt)
  if(TENSORRT_LIBRARY MATCHES "tensorrt_rtx")
    set(DYVIT_TENSORRT_FORMAT rtx)
  endif()
else()
  message(STATUS "dyvit: building without engine plans, because TensorRT was not found; set TENSORRT_ROOT to a folder "
                 "with include/ and lib/")
endif()
