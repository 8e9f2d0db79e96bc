// Memory and events of other processes.
#include "api/entry.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "device/shared_events.h"

using namespace standin;

namespace {

// What a handle says: where another process finds the file.
struct Ticket {
  pid_t process;
  int descriptor;
  size_t bytes;
};
static_assert(sizeof(Ticket) <= sizeof(cudaIpcMemHandle_t) && sizeof(Ticket) <= sizeof(cudaIpcEventHandle_t));

template <class Handle>
void write(Handle* handle, const Ticket& ticket) {
  std::memset(handle, 0, sizeof *handle);
  std::memcpy(handle, &ticket, sizeof ticket);
}

template <class Handle>
Ticket read(const Handle& handle) {
  Ticket ticket;
  std::memcpy(&ticket, &handle, sizeof ticket);
  return ticket;
}

int open_file(const Ticket& ticket) {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/%d/fd/%d", ticket.process, ticket.descriptor);
  return open(path, O_RDWR | O_CLOEXEC);
}

} // namespace

STANDIN_API cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* pointer) {
  STANDIN_ENTER(lock)
  const auto block = range_of(memory().blocks, pointer);
  if (block == memory().blocks.end()) {
    return remember(cudaErrorInvalidValue);
  }
  scheduler().finish_all(lock); // the bytes move into a file
  void* begin = reinterpret_cast<void*>(block->first);
  write(handle, {getpid(), memory().share(begin), block->second.bytes});
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaIpcOpenMemHandle(void** pointer, cudaIpcMemHandle_t handle, unsigned) {
  STANDIN_ENTER(lock)
  const Ticket ticket = read(handle);
  const int descriptor = ticket.process == getpid() ? -1 : open_file(ticket);
  if (descriptor < 0) {
    return remember(cudaErrorInvalidValue);
  }
  *pointer = memory().open_shared(current_device(), descriptor, ticket.bytes);
  return *pointer == nullptr ? remember(cudaErrorMemoryAllocation) : cudaSuccess;
}

STANDIN_API cudaError_t cudaIpcCloseMemHandle(void* pointer) {
  STANDIN_ENTER(lock)
  scheduler().finish_all(lock);
  return memory().release(pointer) ? cudaSuccess : remember(cudaErrorInvalidValue);
}

STANDIN_API cudaError_t cudaIpcGetEventHandle(cudaIpcEventHandle_t* handle, cudaEvent_t event_handle) {
  STANDIN_ENTER(lock)
  auto& event = *reinterpret_cast<Event*>(event_handle);
  if ((event.flags & cudaEventInterprocess) == 0) {
    return remember(cudaErrorInvalidResourceHandle);
  }
  write(handle, {getpid(), share_event(lock, event), 0});
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaIpcOpenEventHandle(cudaEvent_t* event_handle, cudaIpcEventHandle_t handle) {
  STANDIN_ENTER(lock)
  const int descriptor = open_file(read(handle));
  if (descriptor < 0) {
    return remember(cudaErrorInvalidValue);
  }
  auto* event = new Event;
  event->flags = cudaEventInterprocess | cudaEventDisableTiming;
  event->shared = open_shared_event(descriptor);
  *event_handle = reinterpret_cast<cudaEvent_t>(event);
  return cudaSuccess;
}
