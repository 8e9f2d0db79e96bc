// Graphs: work recorded instead of run, and run at each launch.
#pragma once

#include <memory>
#include <thread>
#include <vector>

#include "device/scheduler.h"

namespace standin {

// What lives as long as the graphs that hold it.
struct UserObject {
  void* data;
  cudaHostFn_t destroy;
  long count;
};

struct Graph {
  struct Node {
    Stream* lane; // the stream it was captured on; a name only, it may be gone
    Work work;
  };
  std::vector<Node> nodes;
  std::vector<UserObject*> held; // once for each count
  ~Graph();
};

// Graphs as the runtime hands them out: an executable one holds the same work, and knows its last launch.
struct ExecutableGraph {
  std::shared_ptr<Graph> graph;
  FencePtr last_launch;
};

struct Capture : std::enable_shared_from_this<Capture> {
  Stream* origin;
  cudaStreamCaptureMode mode;
  std::thread::id thread = std::this_thread::get_id();
  unsigned long long id;
  bool invalid = false;
  std::shared_ptr<Graph> graph = std::make_shared<Graph>();

  void add(Stream& stream, Work work);
  void record(Stream& stream, const FencePtr& fence);
  // The stream, which may be outside, comes into the capture.
  void join(Stream& stream, const FencePtr& fence);
  // Whether all captured work comes before the end of the stream that the capture began on.
  bool joined() const;
  // No stream is captured any more.
  void end();

 private:
  std::map<Stream*, size_t> counts_;
  std::map<Stream*, Frontier> frontiers_;
};

std::shared_ptr<Capture> begin_capture(Stream& stream, cudaStreamCaptureMode mode);
bool capturing();

// Whether the calling thread may do something now that a capture cannot contain (wait for the device, allocate). If
// not, the captures it would disturb are invalid.
bool allowed_during_capture();
cudaStreamCaptureMode exchange_capture_mode(cudaStreamCaptureMode mode);

void launch(Lock& lock, ExecutableGraph& graph, Stream& stream);

void release(UserObject* object, long count);

} // namespace standin
