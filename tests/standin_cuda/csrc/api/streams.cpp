// Streams, and functions of the host that run in their order.
#include "api/entry.h"

#include <memory>

using namespace standin;

STANDIN_API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* handle, unsigned flags, int priority) {
  STANDIN_ENTER(lock)
  *handle = reinterpret_cast<cudaStream_t>(&scheduler().create(current_device(), flags, priority));
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* handle, unsigned flags) {
  return cudaStreamCreateWithPriority(handle, flags, 0);
}

STANDIN_API cudaError_t cudaStreamCreate(cudaStream_t* handle) {
  return cudaStreamCreateWithPriority(handle, cudaStreamDefault, 0);
}

STANDIN_API cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  STANDIN_ENTER(lock)
  Stream* stream = stream_of(handle);
  if (handle == nullptr || stream == nullptr) {
    return remember(cudaErrorInvalidResourceHandle);
  }
  scheduler().retire(lock, *stream);
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaStreamGetPriority(cudaStream_t handle, int* priority) {
  STANDIN_ENTER(lock)
  Stream* stream = stream_of(handle);
  if (stream == nullptr) {
    return remember(cudaErrorInvalidResourceHandle);
  }
  *priority = stream->priority;
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaStreamQuery(cudaStream_t handle) {
  STANDIN_ENTER(lock)
  Stream* stream = stream_of(handle);
  if (stream == nullptr) {
    return remember(cudaErrorInvalidResourceHandle);
  }
  if (stream->capture != nullptr) {
    stream->capture->invalid = true;
    return remember(cudaErrorStreamCaptureUnsupported);
  }
  scheduler().let_time_pass(lock);
  if (stream->queue.empty() && !stream->busy) {
    return remember(context_error());
  }
  if (stream->asked++ < settings().patience) {
    return remember(cudaErrorNotReady);
  }
  scheduler().finish(lock, *stream);
  return remember(context_error());
}

STANDIN_API cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  STANDIN_ENTER(lock)
  Stream* stream = stream_of(handle);
  if (stream == nullptr) {
    return remember(cudaErrorInvalidResourceHandle);
  }
  if (stream->capture != nullptr) {
    stream->capture->invalid = true;
    return remember(cudaErrorStreamCaptureUnsupported);
  }
  STANDIN_NOT_WHILE_CAPTURING()
  host_waits(lock, *stream);
  return remember(context_error());
}

STANDIN_API cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void* data) {
  STANDIN_ENTER(lock)
  Stream* stream = stream_of(handle);
  if (stream == nullptr) {
    return remember(cudaErrorInvalidResourceHandle);
  }
  Work work{Kind::HostFunction};
  work.function = function;
  work.data = data;
  scheduler().issue(lock, *stream, std::move(work));
  return remember(context_error());
}

namespace {

struct Callback {
  cudaStream_t stream;
  cudaStreamCallback_t function;
  void* data;
};

} // namespace

STANDIN_API cudaError_t
cudaStreamAddCallback(cudaStream_t handle, cudaStreamCallback_t function, void* data, unsigned) {
  const auto call = [](void* pointer) {
    const std::unique_ptr<Callback> callback(static_cast<Callback*>(pointer));
    callback->function(callback->stream, context_error(), callback->data);
  };
  return cudaLaunchHostFunc(handle, call, new Callback{handle, function, data});
}
