#include "device/graphs.h"

#include <algorithm>
#include <set>

#include "base/counters.h"

namespace standin {
namespace {

std::set<std::shared_ptr<Capture>>& captures() {
  static auto* made = new std::set<std::shared_ptr<Capture>>;
  return *made;
}

thread_local cudaStreamCaptureMode mode_of_thread = cudaStreamCaptureModeGlobal;

void merge(Frontier& into, const Frontier& from) {
  for (const auto& [stream, count] : from) {
    into[stream] = std::max(into[stream], count);
  }
}

} // namespace

Graph::~Graph() {
  for (UserObject* object : held) {
    release(object, 1);
  }
}

void Capture::add(Stream& stream, Work work) {
  if (work.kind != Kind::Record && work.kind != Kind::Wait) {
    frontiers_[&stream][&stream] = ++counts_[&stream];
  }
  graph->nodes.push_back({&stream, std::move(work)});
}

void Capture::record(Stream& stream, const FencePtr& fence) {
  fence->captured = true;
  fence->capture = shared_from_this();
  fence->frontier = frontiers_[&stream];
  Work work{Kind::Record};
  work.fence = fence;
  add(stream, std::move(work));
}

void Capture::join(Stream& stream, const FencePtr& fence) {
  stream.capture = shared_from_this();
  counts_.try_emplace(&stream, 0);
  merge(frontiers_[&stream], fence->frontier);
  Work work{Kind::Wait};
  work.fence = fence;
  add(stream, std::move(work));
}

bool Capture::joined() const {
  const auto reached = frontiers_.find(origin);
  return std::all_of(counts_.begin(), counts_.end(), [&](const auto& lane) {
    const auto& [stream, count] = lane;
    if (stream == origin || count == 0) {
      return true;
    }
    const auto found = reached == frontiers_.end() ? Frontier::const_iterator{} : reached->second.find(stream);
    return reached != frontiers_.end() && found != reached->second.end() && found->second == count;
  });
}

void Capture::end() {
  const auto self = shared_from_this();
  origin->capture = nullptr;
  for (auto& [stream, count] : counts_) {
    if (scheduler().knows(stream) && stream->capture == self) {
      stream->capture = nullptr;
    }
  }
  captures().erase(self);
}

std::shared_ptr<Capture> begin_capture(Stream& stream, cudaStreamCaptureMode mode) {
  static unsigned long long last_id = 0;
  auto made = std::make_shared<Capture>();
  made->origin = &stream;
  made->mode = mode;
  made->id = ++last_id;
  captures().insert(made);
  stream.capture = made;
  return made;
}

bool capturing() {
  return !captures().empty();
}

bool allowed_during_capture() {
  bool allowed = true;
  for (const auto& capture : captures()) {
    const bool ours = capture->thread == std::this_thread::get_id();
    const bool disturbed =
        mode_of_thread != cudaStreamCaptureModeRelaxed &&
        (ours ? capture->mode != cudaStreamCaptureModeRelaxed
              : capture->mode == cudaStreamCaptureModeGlobal && mode_of_thread == cudaStreamCaptureModeGlobal);
    if (disturbed) {
      capture->invalid = true;
      allowed = false;
    }
  }
  return allowed;
}

cudaStreamCaptureMode exchange_capture_mode(cudaStreamCaptureMode mode) {
  std::swap(mode, mode_of_thread);
  return mode;
}

// Each captured stream becomes a stream of its own, between a point of the launching stream and a wait of it: within
// the graph, only what was ordered while it was captured is.
void launch(Lock& lock, ExecutableGraph& executable, Stream& stream) {
  ++counters().graph_launches;
  if (executable.last_launch != nullptr) {
    scheduler().wait(lock, stream, executable.last_launch);
  }
  const FencePtr begin = scheduler().record(lock, stream);
  std::map<Stream*, Stream*> lanes;
  std::map<Fence*, FencePtr> fences;
  for (const auto& [captured_on, captured] : executable.graph->nodes) {
    Stream*& lane = lanes[captured_on];
    if (lane == nullptr) {
      lane = &scheduler().create(stream.device, cudaStreamNonBlocking, 0);
      scheduler().wait(lock, *lane, begin);
    }
    Work work = captured;
    if (work.kind == Kind::Record) {
      const FencePtr fence = scheduler().record(lock, *lane);
      fences[work.fence.get()] = fence;
      if (work.event != nullptr) {
        static_cast<Event*>(work.event)->fence = fence;
      }
    } else if (work.kind == Kind::Wait && work.event != nullptr) {
      if (const FencePtr& outside = static_cast<Event*>(work.event)->fence) {
        scheduler().wait(lock, *lane, outside);
      }
    } else if (work.kind == Kind::Wait) {
      const auto inside = fences.find(work.fence.get());
      scheduler().wait(lock, *lane, inside == fences.end() ? work.fence : inside->second);
    } else {
      if (work.kind == Kind::Kernel) {
        ++counters().kernels;
      }
      scheduler().issue(lock, *lane, std::move(work));
    }
  }
  for (const auto& [captured_on, lane] : lanes) {
    const FencePtr end = scheduler().record(lock, *lane);
    scheduler().wait(lock, stream, end);
    scheduler().retire(lock, *lane);
  }
  executable.last_launch = scheduler().record(lock, stream);
}

void release(UserObject* object, long count) {
  object->count -= count;
  if (object->count == 0) {
    object->destroy(object->data);
    delete object;
  }
}

} // namespace standin
