// Memory of devices, and memory of the host that copies may use while the program goes on.
#include "api/entry.h"

#include <sys/mman.h>

#include <cstdint>
#include <string>

using namespace standin;

namespace {

// Counts down a setting; true when it is this call that has to fail.
bool fails_now(long long& countdown) {
  return countdown > 0 && --countdown == 0;
}

size_t registered_bytes() {
  size_t sum = 0;
  for (const auto& [address, range] : memory().pinned) {
    sum += range.registered ? range.bytes : 0;
  }
  return sum;
}

bool overlaps_pinned(uintptr_t begin, size_t bytes) {
  const auto next = memory().pinned.lower_bound(begin);
  return (next != memory().pinned.end() && next->first < begin + bytes) ||
         range_of(memory().pinned, reinterpret_cast<void*>(begin)) != memory().pinned.end();
}

// Ends the use of a range of pinned memory; what is queued still needs it, so it is done first.
cudaError_t unpin(Lock& lock, void* pointer, bool registered, cudaError_t unknown) {
  const auto found = memory().pinned.find(reinterpret_cast<uintptr_t>(pointer));
  if (found == memory().pinned.end() || found->second.registered != registered) {
    return remember(unknown);
  }
  if (scheduler().host_range_in_use(pointer, found->second.bytes)) {
    report_misuse(
        std::string(registered ? "cudaHostUnregister" : "cudaFreeHost") + " of memory that a queued copy uses");
  }
  scheduler().finish_all(lock);
  if (!registered) {
    munmap(pointer, found->second.bytes);
  }
  memory().pinned.erase(found);
  return cudaSuccess;
}

} // namespace

STANDIN_API cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  STANDIN_ENTER(lock)
  STANDIN_NOT_WHILE_CAPTURING()
  ++counters().mallocs;
  if (bytes == 0) {
    *pointer = nullptr;
    return cudaSuccess;
  }
  *pointer = fails_now(settings().malloc_fails_at) ? nullptr : memory().allocate(current_device(), bytes);
  return *pointer == nullptr ? remember(cudaErrorMemoryAllocation) : cudaSuccess;
}

STANDIN_API cudaError_t cudaFree(void* pointer) {
  STANDIN_ENTER(lock)
  if (pointer == nullptr) {
    return cudaSuccess;
  }
  STANDIN_NOT_WHILE_CAPTURING()
  ++counters().frees;
  scheduler().finish_all(lock);
  return memory().release(pointer) ? cudaSuccess : remember(cudaErrorInvalidValue);
}

STANDIN_API cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t) {
  return cudaMalloc(pointer, bytes);
}

STANDIN_API cudaError_t cudaFreeAsync(void* pointer, cudaStream_t handle) {
  STANDIN_ENTER(lock)
  Stream* stream = stream_of(handle);
  if (stream == nullptr || memory().blocks.count(reinterpret_cast<uintptr_t>(pointer)) == 0) {
    return remember(stream == nullptr ? cudaErrorInvalidResourceHandle : cudaErrorInvalidValue);
  }
  ++counters().frees;
  Work work{Kind::Free};
  work.to = pointer;
  scheduler().issue(lock, *stream, std::move(work));
  return cudaSuccess;
}

// There is one pool a device, and it keeps nothing.
STANDIN_API cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int device) {
  *pool = reinterpret_cast<cudaMemPool_t>(static_cast<uintptr_t>(device) + 1);
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) {
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value) {
  const Lock lock(scheduler().mutex);
  const int device = static_cast<int>(reinterpret_cast<uintptr_t>(pool)) - 1;
  const bool sizes = attribute == cudaMemPoolAttrReservedMemCurrent || attribute == cudaMemPoolAttrUsedMemCurrent ||
                     attribute == cudaMemPoolAttrReservedMemHigh || attribute == cudaMemPoolAttrUsedMemHigh;
  if (sizes) {
    *static_cast<uint64_t*>(value) = memory().used(device);
  } else {
    *static_cast<int*>(value) = 0;
  }
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaMemPoolSetAccess(cudaMemPool_t, const cudaMemAccessDesc*, size_t) {
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) {
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaDeviceGetGraphMemAttribute(int, cudaGraphMemAttributeType, void* value) {
  *static_cast<uint64_t*>(value) = 0;
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaDeviceSetGraphMemAttribute(int, cudaGraphMemAttributeType, void*) {
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  STANDIN_ENTER(lock)
  *total = settings().bytes;
  const size_t used = memory().used(current_device());
  *free = used < *total ? *total - used : 0;
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned flags) {
  STANDIN_ENTER(lock)
  STANDIN_NOT_WHILE_CAPTURING()
  ++counters().host_allocs;
  *pointer = nullptr;
  const long long limit = settings().host_alloc_bytes;
  const size_t held = memory().pinned_bytes() - registered_bytes();
  if (limit >= 0 && held + bytes > static_cast<size_t>(limit)) {
    return remember(cudaErrorMemoryAllocation);
  }
  void* at = mmap(nullptr, bytes == 0 ? 1 : bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) {
    return remember(cudaErrorMemoryAllocation);
  }
  memory().pinned[reinterpret_cast<uintptr_t>(at)] = {bytes == 0 ? 1 : bytes, false, flags};
  *pointer = at;
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaMallocHost(void** pointer, size_t bytes) {
  return cudaHostAlloc(pointer, bytes, cudaHostAllocDefault);
}

STANDIN_API cudaError_t cudaFreeHost(void* pointer) {
  STANDIN_ENTER(lock)
  return pointer == nullptr ? cudaSuccess : unpin(lock, pointer, false, cudaErrorInvalidValue);
}

STANDIN_API cudaError_t cudaHostRegister(void* pointer, size_t bytes, unsigned flags) {
  STANDIN_ENTER(lock)
  ++counters().registrations;
  if (pointer == nullptr || bytes == 0) {
    return remember(cudaErrorInvalidValue);
  }
  const auto begin = reinterpret_cast<uintptr_t>(pointer);
  if (overlaps_pinned(begin, bytes)) {
    return remember(cudaErrorHostMemoryAlreadyRegistered);
  }
  const long long limit = settings().register_bytes;
  const bool too_much = limit >= 0 && registered_bytes() + bytes > static_cast<size_t>(limit);
  if (fails_now(settings().register_fails_at) || too_much) {
    return remember(cudaErrorMemoryAllocation);
  }
  memory().pinned[begin] = {bytes, true, flags};
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaHostUnregister(void* pointer) {
  STANDIN_ENTER(lock)
  return unpin(lock, pointer, true, cudaErrorHostMemoryNotRegistered);
}

STANDIN_API cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  *device = host;
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  STANDIN_ENTER(lock)
  *attributes = {};
  attributes->type = cudaMemoryTypeUnregistered;
  attributes->device = -1;
  if (const auto block = range_of(memory().blocks, pointer); block != memory().blocks.end()) {
    attributes->type = cudaMemoryTypeDevice;
    attributes->device = block->second.device;
    attributes->devicePointer = const_cast<void*>(pointer);
  } else if (range_of(memory().pinned, pointer) != memory().pinned.end()) {
    attributes->type = cudaMemoryTypeHost;
    attributes->device = current_device();
    attributes->hostPointer = attributes->devicePointer = const_cast<void*>(pointer);
  }
  return cudaSuccess;
}
