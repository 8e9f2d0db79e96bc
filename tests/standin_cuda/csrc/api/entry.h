// What every entry point begins with.
#pragma once

#include <cuda_runtime_api.h>

#include "base/counters.h"
#include "base/errors.h"
#include "base/settings.h"
#include "device/clock.h"
#include "device/graphs.h"
#include "device/memory.h"
#include "device/scheduler.h"

#define STANDIN_API extern "C" __attribute__((visibility("default")))

// Holds the lock of the runtime, and returns where the context is lost.
#define STANDIN_ENTER(lock)                \
  ::standin::Lock lock(scheduler().mutex); \
  if (context_error() != cudaSuccess) {    \
    return remember(context_error());      \
  }

// Returns where a stream is captured that the call would disturb.
#define STANDIN_NOT_WHILE_CAPTURING()                   \
  if (capturing() && !allowed_during_capture()) {       \
    return remember(cudaErrorStreamCaptureUnsupported); \
  }

namespace standin {

int& current_device();

inline bool is_device(int device) {
  return device >= 0 && device < settings().devices;
}

// The stream of a handle; null if it is of none.
inline Stream* stream_of(cudaStream_t handle) {
  if (handle == nullptr || handle == cudaStreamLegacy || handle == cudaStreamPerThread) {
    return &scheduler().default_stream(current_device());
  }
  auto* stream = reinterpret_cast<Stream*>(handle);
  return scheduler().knows(stream) ? stream : nullptr;
}

// The host has waited until this point is passed.
inline void host_waits(Lock& lock, const FencePtr& fence) {
  ++counters().host_waits;
  scheduler().finish(lock, fence);
  device_clock().host_waits_for(fence->seconds);
}

inline void host_waits(Lock& lock, Stream& stream) {
  ++counters().host_waits;
  scheduler().finish(lock, stream);
  device_clock().host_waits_for(stream.seconds);
}

} // namespace standin
