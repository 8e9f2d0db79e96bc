// Kernels: those of the library are refused by name, those of the operators' stand-ins are work like any other.
#include "api/entry.h"
#include "api/launch.h"

#include <cxxabi.h>

#include <cstdlib>
#include <mutex>
#include <unordered_map>

using namespace standin;

namespace {

struct Names {
  std::mutex mutex;
  std::unordered_map<const void*, const char*> by_function;
};

Names& names() {
  static auto* made = new Names;
  return *made;
}

std::string name_of(const void* function) {
  const std::lock_guard<std::mutex> lock(names().mutex);
  const auto found = names().by_function.find(function);
  if (found == names().by_function.end()) {
    return "a kernel that was not registered";
  }
  char* readable = abi::__cxa_demangle(found->second, nullptr, nullptr, nullptr);
  const std::string name = readable == nullptr ? found->second : readable;
  std::free(readable);
  return name;
}

} // namespace

cudaError_t standin_launch(cudaStream_t handle, const StandinKernel* kernel) {
  auto owned = std::make_shared<Kernel>(kernel->name, kernel->run, kernel->destroy, kernel->data);
  STANDIN_ENTER(lock)
  Stream* stream = stream_of(handle);
  if (stream == nullptr) {
    return remember(cudaErrorInvalidResourceHandle);
  }
  ++counters().kernels;
  Work work{Kind::Kernel};
  work.seconds = device_clock().seconds_of(kernel->name, kernel->bytes, kernel->flops);
  work.kernel = std::move(owned);
  scheduler().issue(lock, *stream, std::move(work));
  return cudaSuccess; // what a kernel does wrong is told later
}

cudaError_t standin_run_now(cudaStream_t handle, const char* name) {
  STANDIN_ENTER(lock)
  Stream* stream = stream_of(handle);
  if (stream == nullptr) {
    return remember(cudaErrorInvalidResourceHandle);
  }
  if (stream->capture != nullptr) {
    stream->capture->invalid = true;
    return remember(cudaErrorStreamCaptureUnsupported, std::string(name) + " needs its result on the host");
  }
  ++counters().kernels;
  ++counters().immediate_kernels;
  host_waits(lock, *stream);
  return remember(context_error());
}

extern "C" void* standin_bytes(const void* pointer) {
  return const_cast<void*>(memory().bytes_of(pointer));
}

// What the compiler of CUDA puts into a library that has kernels.

STANDIN_API void** __cudaRegisterFatBinary(void* binary) {
  return new void*(binary);
}

STANDIN_API void __cudaRegisterFatBinaryEnd(void**) {}

STANDIN_API void __cudaUnregisterFatBinary(void**) {}

STANDIN_API void __cudaRegisterFunction(
    void**, const char* function, char*, const char* name, int, void*, void*, void*, void*, int*) {
  const std::lock_guard<std::mutex> lock(names().mutex);
  names().by_function[function] = name;
}

STANDIN_API void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

namespace {

struct Configuration {
  dim3 grid, block;
  size_t shared = 0;
  cudaStream_t stream = nullptr;
};

thread_local Configuration pushed;

} // namespace

STANDIN_API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  pushed = {grid, block, shared, stream};
  return 0;
}

STANDIN_API cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = pushed.grid;
  *block = pushed.block;
  *shared = pushed.shared;
  *static_cast<cudaStream_t*>(stream) = pushed.stream;
  return cudaSuccess;
}

STANDIN_API cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaLaunchKernel(const void* function, dim3, dim3, void**, size_t, cudaStream_t) {
  return refuse_kernel(name_of(function));
}

STANDIN_API cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3, dim3, void**, size_t, cudaStream_t) {
  return refuse_kernel(name_of(kernel));
}

STANDIN_API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void* function, void**) {
  return refuse_kernel(name_of(function));
}

// Libraries ask before they launch; they hear what lets them go on, to be refused by name.

STANDIN_API cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  attributes->maxThreadsPerBlock = 1024;
  attributes->binaryVersion = attributes->ptxVersion = 90;
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) {
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t, cudaFuncAttribute, int, int) {
  return cudaSuccess;
}

STANDIN_API cudaError_t
cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* count, const void*, int, size_t, unsigned) {
  *count = 8;
  return cudaSuccess;
}
