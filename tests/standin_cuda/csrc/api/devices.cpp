// Devices and their properties.
#include "api/entry.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <string>

namespace standin {

int& current_device() {
  thread_local int current = 0;
  return current;
}

} // namespace standin

using namespace standin;

namespace {

// The operators are in a library beside this one. It needs those of PyTorch, so it waits for the first who asks for a
// device.
void load_operators() {
  static std::atomic<bool> loaded = false;
  if (loaded.exchange(true)) {
    return;
  }
  Dl_info here;
  dladdr(reinterpret_cast<void*>(&load_operators), &here);
  const std::string path(here.dli_fname);
  const std::string operators = path.substr(0, path.rfind('/')) + "/libstandin_operators.so";
  void* library = dlopen(operators.c_str(), RTLD_NOW | RTLD_GLOBAL);
  auto* install = library == nullptr ? nullptr : reinterpret_cast<long (*)()>(dlsym(library, "standin_install"));
  if (install == nullptr) {
    std::fprintf(stderr, "stand-in CUDA: the operators cannot be loaded: %s\n", dlerror());
    std::abort();
  }
  install();
}

} // namespace

STANDIN_API cudaError_t cudaGetDeviceCount(int* count) {
  load_operators();
  *count = static_cast<int>(settings().devices);
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaGetDevice(int* device) {
  *device = current_device();
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaSetDevice(int device) {
  if (!is_device(device)) {
    return remember(cudaErrorInvalidDevice);
  }
  current_device() = device;
  return remember(context_error());
}

STANDIN_API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (!is_device(device)) {
    return remember(cudaErrorInvalidDevice);
  }
  cudaDeviceProp found{};
  std::snprintf(found.name, sizeof found.name, "Stand-in for a CUDA device");
  found.uuid.bytes[0] = static_cast<char>(1 + device);
  found.pciBusID = device;
  found.totalGlobalMem = settings().bytes;
  found.major = 9;
  found.warpSize = 32;
  found.multiProcessorCount = 132;
  found.maxThreadsPerBlock = found.maxThreadsDim[0] = found.maxThreadsDim[1] = 1024;
  found.maxThreadsDim[2] = 64;
  found.maxGridSize[0] = 2147483647;
  found.maxGridSize[1] = found.maxGridSize[2] = 65535;
  found.maxThreadsPerMultiProcessor = 2048;
  found.maxBlocksPerMultiProcessor = 32;
  found.sharedMemPerBlock = 48 << 10;
  found.sharedMemPerBlockOptin = 227 << 10;
  found.sharedMemPerMultiprocessor = 228 << 10;
  found.regsPerBlock = found.regsPerMultiprocessor = 65536;
  found.l2CacheSize = 50 << 20;
  found.memoryBusWidth = 5120;
  found.textureAlignment = 512;
  found.asyncEngineCount = 2;
  found.concurrentKernels = found.cooperativeLaunch = found.streamPrioritiesSupported = 1;
  found.unifiedAddressing = found.canMapHostMemory = found.managedMemory = found.hostRegisterSupported = 1;
  *properties = found;
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp properties;
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, device); error != cudaSuccess) {
    return error;
  }
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = properties.major; break;
    case cudaDevAttrMultiProcessorCount: *value = properties.multiProcessorCount; break;
    case cudaDevAttrWarpSize: *value = properties.warpSize; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = properties.maxThreadsPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = static_cast<int>(properties.sharedMemPerBlock); break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(properties.sharedMemPerBlockOptin); break;
    case cudaDevAttrTextureAlignment: *value = static_cast<int>(properties.textureAlignment); break;
    case cudaDevAttrAsyncEngineCount: *value = properties.asyncEngineCount; break;
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrCanUseHostPointerForRegisteredMem:
    case cudaDevAttrHostRegisterSupported: *value = 1; break;
    default: *value = 0;
  }
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaDeviceGetPCIBusId(char* text, int capacity, int device) {
  std::snprintf(text, capacity, "0000:%02x:00.0", device);
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  if (!is_device(device) || !is_device(peer)) {
    return remember(cudaErrorInvalidDevice);
  }
  *can = 0; // as of two cards without a bridge between them
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned) {
  STANDIN_ENTER(lock)
  static auto* enabled = new std::set<std::pair<int, int>>;
  if (!is_device(peer)) {
    return remember(cudaErrorInvalidDevice);
  }
  return enabled->emplace(current_device(), peer).second ? cudaSuccess : remember(cudaErrorPeerAccessAlreadyEnabled);
}

STANDIN_API cudaError_t cudaDeviceGetStreamPriorityRange(int* lowest, int* highest) {
  if (lowest != nullptr) {
    *lowest = 0;
  }
  if (highest != nullptr) {
    *highest = -5;
  }
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaDeviceSynchronize() {
  STANDIN_ENTER(lock)
  STANDIN_NOT_WHILE_CAPTURING()
  ++counters().host_waits;
  const std::vector<Stream*> streams = scheduler().streams_of(current_device());
  for (const Stream* stream : streams) {
    device_clock().host_waits_for(stream->seconds);
  }
  scheduler().finish(lock, streams);
  return remember(context_error());
}

STANDIN_API cudaError_t cudaGetLastError() {
  return take_last_error();
}

STANDIN_API cudaError_t cudaPeekAtLastError() {
  return last_error();
}

STANDIN_API const char* cudaGetErrorString(cudaError_t error) {
  return describe(error);
}

STANDIN_API const char* cudaGetErrorName(cudaError_t error) {
  return describe(error);
}

STANDIN_API cudaError_t cudaProfilerStart() {
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaProfilerStop() {
  return cudaSuccess;
}

// No function of the driver is handed out: what asks for one has to do without.
STANDIN_API cudaError_t cudaGetDriverEntryPointByVersion(
    const char*, void** function, unsigned, unsigned long long, cudaDriverEntryPointQueryResult* result) {
  *function = nullptr;
  if (result != nullptr) {
    *result = cudaDriverEntryPointSymbolNotFound;
  }
  return cudaErrorNotSupported;
}
