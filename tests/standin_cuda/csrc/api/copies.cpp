// Copies and fills.
#include "api/entry.h"

#include <cstring>

using namespace standin;

namespace {

constexpr size_t kStagedAtOnce = 64 << 10; // CUDA copies up to this from pageable memory without looking at the stream

bool on_device(const void* pointer) {
  return Memory::on_device(reinterpret_cast<uintptr_t>(pointer));
}

bool is_pinned(const void* pointer, size_t bytes) {
  const auto range = range_of(memory().pinned, pointer);
  const auto offset = reinterpret_cast<uintptr_t>(pointer) - (range == memory().pinned.end() ? 0 : range->first);
  return range != memory().pinned.end() && offset + bytes <= range->second.bytes;
}

// Whether all bytes are of one block, where they are on a device.
bool exists(const void* pointer, size_t bytes) {
  if (!on_device(pointer)) {
    return true;
  }
  const auto block = range_of(memory().blocks, pointer);
  return block != memory().blocks.end() &&
         reinterpret_cast<uintptr_t>(pointer) + bytes <= block->first + block->second.bytes;
}

bool agrees(cudaMemcpyKind kind, bool from_device, bool to_device) {
  switch (kind) {
    case cudaMemcpyHostToHost: return !from_device && !to_device;
    case cudaMemcpyHostToDevice: return !from_device && to_device;
    case cudaMemcpyDeviceToHost: return from_device && !to_device;
    case cudaMemcpyDeviceToDevice: return from_device && to_device;
    default: return true;
  }
}

void to_device(Lock& lock, Stream& stream, Work work) {
  ++counters().h2d;
  counters().h2d_bytes += static_cast<long>(work.bytes);
  work.link = 0;
  if (!is_pinned(work.from, work.bytes) && stream.capture == nullptr) {
    ++counters().pageable_h2d;
    if (work.bytes > kStagedAtOnce) {
      host_waits(lock, stream);
    }
    const auto* from = static_cast<const char*>(work.from);
    work.staged = std::make_shared<std::vector<char>>(from, from + work.bytes);
  }
  scheduler().issue(lock, stream, std::move(work));
}

void from_device(Lock& lock, Stream& stream, Work work) {
  ++counters().d2h;
  counters().d2h_bytes += static_cast<long>(work.bytes);
  work.link = 1;
  const bool asynchronous = is_pinned(work.to, work.bytes) || stream.capture != nullptr;
  scheduler().issue(lock, stream, std::move(work));
  if (!asynchronous) {
    host_waits(lock, stream);
  }
}

void on_host(Lock& lock, Stream& stream, const Work& work) {
  host_waits(lock, stream);
  std::memmove(work.to, work.from, work.bytes);
}

cudaError_t copy(Lock& lock, void* to, const void* from, size_t bytes, cudaMemcpyKind kind, Stream& stream) {
  if (bytes == 0) {
    return cudaSuccess;
  }
  if (!exists(to, bytes) || !exists(from, bytes)) {
    return remember(cudaErrorInvalidValue);
  }
  if (!agrees(kind, on_device(from), on_device(to))) {
    return remember(cudaErrorInvalidMemcpyDirection);
  }
  Work work{Kind::Copy};
  work.to = to;
  work.from = from;
  work.bytes = bytes;
  if (on_device(to) && on_device(from)) {
    ++counters().d2d;
    work.seconds = device_clock().seconds_of("aten::copy_", 2.0 * static_cast<double>(bytes), 0);
    scheduler().issue(lock, stream, std::move(work));
  } else if (on_device(to)) {
    to_device(lock, stream, std::move(work));
  } else if (on_device(from)) {
    from_device(lock, stream, std::move(work));
  } else {
    on_host(lock, stream, work);
  }
  return remember(context_error());
}

} // namespace

STANDIN_API cudaError_t
cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t handle) {
  STANDIN_ENTER(lock)
  Stream* stream = stream_of(handle);
  return stream == nullptr ? remember(cudaErrorInvalidResourceHandle) : copy(lock, to, from, bytes, kind, *stream);
}

STANDIN_API cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  STANDIN_ENTER(lock)
  STANDIN_NOT_WHILE_CAPTURING()
  Stream& stream = scheduler().default_stream(current_device());
  const cudaError_t error = copy(lock, to, from, bytes, kind, stream);
  // Within a device, and of little from pageable memory, it returns before the device has done it.
  const bool staged = !on_device(from) && !is_pinned(from, bytes) && bytes <= kStagedAtOnce;
  if (error == cudaSuccess && !(on_device(to) && (on_device(from) || staged))) {
    host_waits(lock, stream);
  }
  return error == cudaSuccess ? remember(context_error()) : error;
}

STANDIN_API cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t handle) {
  return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, handle);
}

STANDIN_API cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t handle) {
  STANDIN_ENTER(lock)
  Stream* stream = stream_of(handle);
  if (stream == nullptr || !exists(to, bytes)) {
    return remember(stream == nullptr ? cudaErrorInvalidResourceHandle : cudaErrorInvalidValue);
  }
  Work work{Kind::Fill};
  work.to = to;
  work.value = value;
  work.bytes = bytes;
  work.seconds = device_clock().seconds_of("aten::fill_", static_cast<double>(bytes), 0);
  scheduler().issue(lock, *stream, std::move(work));
  return remember(context_error());
}

STANDIN_API cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  return cudaMemsetAsync(to, value, bytes, nullptr);
}
