// What streams hold: work that has been issued and has not run.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace standin {

struct Stream;
struct Capture;

// How much of each stream something comes after, while a graph is captured.
using Frontier = std::map<const Stream*, size_t>;

// A point in a stream. It is passed when all work before it has run.
struct Fence {
  Stream* stream = nullptr;
  bool passed = false;
  double seconds = 0; // virtual time at which it is passed
  bool captured = false; // a point in a capture, which nothing outside may wait for
  std::weak_ptr<Capture> capture; // while it lasts
  Frontier frontier;
};
using FencePtr = std::shared_ptr<Fence>;

// A kernel: its caller's function on its caller's data.
struct Kernel {
  std::string name;
  int (*run)(void* data, char* message, size_t capacity); // a cudaError_t; what went wrong goes into the message
  void (*destroy)(void* data);
  void* data;

  Kernel(const char* name, decltype(run) run, decltype(destroy) destroy, void* data)
      : name(name), run(run), destroy(destroy), data(data) {}
  Kernel(const Kernel&) = delete;
  ~Kernel() {
    destroy(data);
  }
};

enum class Kind { Copy, Fill, Kernel, Record, Wait, HostFunction, Free };

struct Work {
  Kind kind;
  void* to = nullptr;
  const void* from = nullptr;
  size_t bytes = 0;
  int value = 0; // of a fill
  int link = -1; // 0 and 1: a copy to the device and from it
  std::shared_ptr<std::vector<char>> staged; // what a copy from pageable memory has read already
  FencePtr fence;
  void* event = nullptr; // outside of a graph, recorded or waited for anew by each launch of it
  std::shared_ptr<Kernel> kernel;
  cudaHostFn_t function = nullptr;
  void* data = nullptr;
  double seconds = 0; // virtual time it takes, but for copies over a link
};

struct Stream {
  int device = 0;
  unsigned flags = 0;
  int priority = 0;
  bool is_default = false; // waits for streams without cudaStreamNonBlocking, and they for it
  bool retired = false; // gone when empty
  std::deque<Work> queue;
  bool busy = false; // a host function of it runs, in some thread
  int asked = 0; // queries answered "not ready" since it was last given work
  double weight = 1; // how likely it is to go next
  int mood = -1; // of the device, when the weight was drawn
  double seconds = 0; // virtual time at which all work issued so far is over
  std::shared_ptr<Capture> capture;
};

struct Event {
  unsigned flags = 0;
  FencePtr fence; // null until recorded
  int asked = 0;
  struct SharedEvent* shared = nullptr; // of an event that other processes may open
};

} // namespace standin
