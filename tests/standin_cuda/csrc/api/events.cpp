// Events.
#include "api/entry.h"

#include "device/shared_events.h"

using namespace standin;

namespace {

Event& event_of(cudaEvent_t handle) {
  return *reinterpret_cast<Event*>(handle);
}

bool is_over(const Event& event) {
  return event.shared != nullptr ? has_happened(*event.shared) : event.fence == nullptr || event.fence->passed;
}

} // namespace

STANDIN_API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* handle, unsigned flags) {
  STANDIN_ENTER(lock)
  auto* event = new Event;
  event->flags = flags;
  *handle = reinterpret_cast<cudaEvent_t>(event);
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaEventCreate(cudaEvent_t* handle) {
  return cudaEventCreateWithFlags(handle, cudaEventDefault);
}

STANDIN_API cudaError_t cudaEventDestroy(cudaEvent_t handle) {
  STANDIN_ENTER(lock)
  Event& event = event_of(handle);
  if (event.shared != nullptr) {
    close_shared_event(event.shared);
  }
  delete &event;
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t stream_handle, unsigned flags) {
  STANDIN_ENTER(lock)
  Event& event = event_of(handle);
  Stream* stream = stream_of(stream_handle);
  if (stream == nullptr) {
    return remember(cudaErrorInvalidResourceHandle);
  }
  event.asked = 0;
  if (event.shared != nullptr) {
    record_shared(lock, event, *stream);
    return remember(context_error());
  }
  const FencePtr fence = scheduler().record(lock, *stream);
  if (stream->capture != nullptr && (flags & cudaEventRecordExternal) != 0) {
    stream->capture->graph->nodes.back().work.event = &event;
  } else {
    event.fence = fence;
  }
  if (stream->capture == nullptr) {
    scheduler().let_time_pass(lock);
  }
  return remember(context_error());
}

STANDIN_API cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream) {
  return cudaEventRecordWithFlags(handle, stream, cudaEventRecordDefault);
}

STANDIN_API cudaError_t cudaEventQuery(cudaEvent_t handle) {
  STANDIN_ENTER(lock)
  STANDIN_NOT_WHILE_CAPTURING()
  Event& event = event_of(handle);
  if (event.fence != nullptr && event.fence->captured) {
    return remember(cudaErrorCapturedEvent);
  }
  scheduler().let_time_pass(lock);
  if (is_over(event)) {
    return remember(context_error());
  }
  if (event.asked++ < settings().patience) {
    return remember(cudaErrorNotReady);
  }
  scheduler().finish(lock, event.fence);
  return remember(context_error());
}

STANDIN_API cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  STANDIN_ENTER(lock)
  STANDIN_NOT_WHILE_CAPTURING()
  Event& event = event_of(handle);
  if (event.fence != nullptr && event.fence->captured) {
    return remember(cudaErrorCapturedEvent);
  }
  if (event.fence != nullptr) {
    host_waits(lock, event.fence);
  }
  return remember(context_error());
}

STANDIN_API cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin_handle, cudaEvent_t end_handle) {
  STANDIN_ENTER(lock)
  const Event& begin = event_of(begin_handle);
  const Event& end = event_of(end_handle);
  const bool untimed = ((begin.flags | end.flags) & cudaEventDisableTiming) != 0;
  if (untimed || begin.fence == nullptr || end.fence == nullptr) {
    return remember(cudaErrorInvalidResourceHandle);
  }
  if (!begin.fence->passed || !end.fence->passed) {
    return remember(cudaErrorNotReady);
  }
  *milliseconds = static_cast<float>((end.fence->seconds - begin.fence->seconds) * 1e3);
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaStreamWaitEvent(cudaStream_t stream_handle, cudaEvent_t handle, unsigned flags) {
  STANDIN_ENTER(lock)
  Event& event = event_of(handle);
  Stream* stream = stream_of(stream_handle);
  if (stream == nullptr) {
    return remember(cudaErrorInvalidResourceHandle);
  }
  const FencePtr& fence = event.fence;
  if (fence == nullptr || event.shared != nullptr) {
    return cudaSuccess; // never recorded, or it happened when it was recorded
  }
  if (fence->captured && (flags & cudaEventWaitExternal) == 0) {
    const auto capture = fence->capture.lock();
    if (capture == nullptr) {
      return remember(cudaErrorCapturedEvent);
    }
    if (stream->capture != nullptr && stream->capture != capture) {
      return remember(cudaErrorStreamCaptureIsolation);
    }
    capture->join(*stream, fence);
    return cudaSuccess;
  }
  if (stream->capture != nullptr) {
    if ((flags & cudaEventWaitExternal) == 0) {
      stream->capture->invalid = true;
      return remember(cudaErrorStreamCaptureIsolation);
    }
    Work work{Kind::Wait};
    work.event = &event;
    stream->capture->add(*stream, std::move(work));
    return cudaSuccess;
  }
  scheduler().wait(lock, *stream, fence);
  return remember(context_error());
}
