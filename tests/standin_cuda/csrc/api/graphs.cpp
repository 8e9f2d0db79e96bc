// Capture of streams, and the graphs it makes.
#include "api/entry.h"

#include <algorithm>

using namespace standin;

namespace {

// What a cudaGraph_t points to; while it is captured, to the pointer that the capture has.
std::shared_ptr<Graph>& graph_of(cudaGraph_t handle) {
  return *reinterpret_cast<std::shared_ptr<Graph>*>(handle);
}

ExecutableGraph& executable_of(cudaGraphExec_t handle) {
  return *reinterpret_cast<ExecutableGraph*>(handle);
}

UserObject* object_of(cudaUserObject_t handle) {
  return reinterpret_cast<UserObject*>(handle);
}

cudaStreamCaptureStatus status_of(const Stream& stream) {
  if (stream.capture == nullptr) {
    return cudaStreamCaptureStatusNone;
  }
  return stream.capture->invalid ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
}

} // namespace

STANDIN_API cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  STANDIN_ENTER(lock)
  Stream* stream = stream_of(handle);
  if (stream == nullptr) {
    return remember(cudaErrorInvalidResourceHandle);
  }
  if (stream->is_default || stream->capture != nullptr) {
    return remember(cudaErrorStreamCaptureUnsupported);
  }
  begin_capture(*stream, mode);
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  STANDIN_ENTER(lock)
  Stream* stream = stream_of(handle);
  *graph = nullptr;
  if (stream == nullptr || stream->capture == nullptr || stream->capture->origin != stream) {
    return remember(cudaErrorStreamCaptureUnmatched);
  }
  const std::shared_ptr<Capture> capture = stream->capture;
  if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id()) {
    return remember(cudaErrorStreamCaptureWrongThread);
  }
  capture->end();
  if (capture->invalid) {
    return remember(cudaErrorStreamCaptureInvalidated);
  }
  if (!capture->joined()) {
    return remember(cudaErrorStreamCaptureUnjoined);
  }
  *graph = reinterpret_cast<cudaGraph_t>(new std::shared_ptr<Graph>(capture->graph));
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  STANDIN_ENTER(lock)
  Stream* stream = stream_of(handle);
  if (stream == nullptr) {
    return remember(cudaErrorInvalidResourceHandle);
  }
  *status = status_of(*stream);
  return cudaSuccess;
}

// Of the nodes, which others may depend on, nothing is told: those who ask for them find none.
STANDIN_API cudaError_t cudaStreamGetCaptureInfo(
    cudaStream_t handle,
    cudaStreamCaptureStatus* status,
    unsigned long long* id,
    cudaGraph_t* graph,
    const cudaGraphNode_t** dependencies,
    const cudaGraphEdgeData** edges,
    size_t* count) {
  STANDIN_ENTER(lock)
  Stream* stream = stream_of(handle);
  if (stream == nullptr) {
    return remember(cudaErrorInvalidResourceHandle);
  }
  *status = status_of(*stream);
  if (id != nullptr) {
    *id = stream->capture == nullptr ? 0 : stream->capture->id;
  }
  if (graph != nullptr) {
    *graph = stream->capture == nullptr ? nullptr : reinterpret_cast<cudaGraph_t>(&stream->capture->graph);
  }
  if (dependencies != nullptr) {
    *dependencies = nullptr;
  }
  if (edges != nullptr) {
    *edges = nullptr;
  }
  if (count != nullptr) {
    *count = 0;
  }
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  *mode = exchange_capture_mode(*mode);
  return cudaSuccess;
}

// The nodes are not handed out, so there is only their number to tell.
STANDIN_API cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  STANDIN_ENTER(lock)
  if (nodes != nullptr) {
    return remember(cudaErrorNotSupported, "the stand-in does not hand out the nodes of a graph");
  }
  const auto& found = graph_of(graph)->nodes;
  *count = std::count_if(found.begin(), found.end(), [](const Graph::Node& node) {
    return node.work.kind != Kind::Record && node.work.kind != Kind::Wait;
  });
  return cudaSuccess;
}

STANDIN_API cudaError_t
cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  STANDIN_ENTER(lock)
  *executable = reinterpret_cast<cudaGraphExec_t>(new ExecutableGraph{graph_of(graph), nullptr});
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t handle) {
  STANDIN_ENTER(lock)
  Stream* stream = stream_of(handle);
  if (stream == nullptr) {
    return remember(cudaErrorInvalidResourceHandle);
  }
  launch(lock, executable_of(executable), *stream);
  return remember(context_error());
}

STANDIN_API cudaError_t cudaGraphDestroy(cudaGraph_t handle) {
  STANDIN_ENTER(lock)
  delete &graph_of(handle);
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t handle) {
  STANDIN_ENTER(lock)
  delete &executable_of(handle);
  return cudaSuccess;
}

STANDIN_API cudaError_t
cudaUserObjectCreate(cudaUserObject_t* handle, void* data, cudaHostFn_t destroy, unsigned count, unsigned) {
  *handle = reinterpret_cast<cudaUserObject_t>(new UserObject{data, destroy, static_cast<long>(count)});
  return cudaSuccess;
}

STANDIN_API cudaError_t cudaUserObjectRelease(cudaUserObject_t handle, unsigned count) {
  const Lock lock(scheduler().mutex);
  release(object_of(handle), count);
  return cudaSuccess;
}

STANDIN_API cudaError_t
cudaGraphRetainUserObject(cudaGraph_t graph, cudaUserObject_t handle, unsigned count, unsigned flags) {
  STANDIN_ENTER(lock)
  UserObject* object = object_of(handle);
  if ((flags & cudaGraphUserObjectMove) == 0) {
    object->count += count;
  }
  graph_of(graph)->held.insert(graph_of(graph)->held.end(), count, object);
  return cudaSuccess;
}
