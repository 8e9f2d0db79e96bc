#include "device/scheduler.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "device/clock.h"
#include "base/counters.h"
#include "base/errors.h"
#include "device/graphs.h"
#include "device/memory.h"
#include "base/settings.h"

namespace standin {

void Scheduler::seed(long long seed) {
  order_kind_ = seed == -2 ? Order::AtOnce : seed < 0 ? Order::Late : Order::Random;
  random_.seed(seed);
  calls_ = 0;
  change_mood();
}

Stream& Scheduler::default_stream(int device) {
  Stream*& found = default_[device];
  if (found == nullptr) {
    found = &create(device, 0, 0);
    found->is_default = true;
  }
  return *found;
}

Stream& Scheduler::create(int device, unsigned flags, int priority) {
  auto* made = new Stream;
  made->device = device;
  made->flags = flags;
  made->priority = priority;
  streams_.insert(made);
  order_.push_back(made);
  return *made;
}

void Scheduler::destroy(Lock& lock, Stream& stream) {
  finish(lock, stream);
  forget(stream);
}

std::vector<Stream*> Scheduler::streams_of(int device) const {
  std::vector<Stream*> found;
  std::copy_if(order_.begin(), order_.end(), std::back_inserter(found), [&](Stream* stream) {
    return stream->device == device;
  });
  return found;
}

void Scheduler::issue(Lock& lock, Stream& stream, Work work) {
  if (stream.capture != nullptr) {
    stream.capture->add(stream, std::move(work));
    return;
  }
  give_way_to_default(lock, stream);
  enqueue(lock, stream, std::move(work));
  let_time_pass(lock);
}

void Scheduler::enqueue(Lock&, Stream& stream, Work work) {
  device_clock().issue(stream, work);
  if (stream.queue.empty()) {
    busy_.push_back(&stream);
  }
  stream.queue.push_back(std::move(work));
  stream.asked = 0;
}

// The default stream waits for all streams made without cudaStreamNonBlocking, and they wait for it.
void Scheduler::give_way_to_default(Lock& lock, Stream& stream) {
  if ((stream.flags & cudaStreamNonBlocking) != 0) {
    return;
  }
  for (Stream* other : streams_of(stream.device)) {
    const bool related = stream.is_default || other->is_default;
    if (other == &stream || !related || other->queue.empty() || (other->flags & cudaStreamNonBlocking) != 0) {
      continue;
    }
    Work wait{Kind::Wait};
    wait.fence = record(lock, *other);
    enqueue(lock, stream, std::move(wait));
  }
}

FencePtr Scheduler::record(Lock& lock, Stream& stream) {
  auto fence = std::make_shared<Fence>();
  fence->stream = &stream;
  if (stream.capture != nullptr) {
    stream.capture->record(stream, fence);
    return fence;
  }
  Work work{Kind::Record};
  work.fence = fence;
  enqueue(lock, stream, std::move(work));
  return fence;
}

void Scheduler::wait(Lock& lock, Stream& stream, const FencePtr& fence) {
  Work work{Kind::Wait};
  work.fence = fence;
  if (fence->passed) {
    device_clock().issue(stream, work); // nothing to wait for, but its time may be later than that of the stream
  } else {
    issue(lock, stream, std::move(work));
  }
}

void Scheduler::retire(Lock&, Stream& stream) {
  stream.retired = true;
  if (stream.queue.empty() && !stream.busy) {
    forget(stream);
  }
}

void Scheduler::forget(Stream& stream) {
  streams_.erase(&stream);
  order_.erase(std::find(order_.begin(), order_.end(), &stream));
  delete &stream;
}

bool Scheduler::ready(const Stream& stream) const {
  if (stream.busy || stream.queue.empty()) {
    return false;
  }
  const Work& next = stream.queue.front();
  return next.kind != Kind::Wait || next.fence->passed;
}

Stream* Scheduler::needed_for(const Fence& fence) const {
  Stream* stream = fence.stream;
  while (true) {
    if (stream->busy) {
      return nullptr;
    }
    const Work& next = stream->queue.front();
    if (next.kind != Kind::Wait || next.fence->passed) {
      return stream;
    }
    stream = next.fence->stream;
  }
}

Stream* Scheduler::random_stream() {
  std::vector<Stream*> found;
  std::vector<double> weights;
  for (Stream* stream : busy_) {
    if (stream->mood != mood_) {
      stream->mood = mood_;
      stream->weight = std::pow(10.0, std::uniform_int_distribution<>(-2, 2)(random_));
    }
    if (ready(*stream)) {
      found.push_back(stream);
      weights.push_back(stream->weight);
    }
  }
  return found.empty() ? nullptr : found[std::discrete_distribution<>(weights.begin(), weights.end())(random_)];
}

void Scheduler::change_mood() {
  constexpr double kEagerness[] = {0, 0, 0.3, 0.6, 0.95};
  constexpr double kDistraction[] = {0, 0.3, 0.8};
  eagerness_ = kEagerness[std::uniform_int_distribution<>(0, 4)(random_)];
  distraction_ = kDistraction[std::uniform_int_distribution<>(0, 2)(random_)];
  ++mood_;
}

void Scheduler::let_time_pass(Lock& lock) {
  if (order_kind_ == Order::Late) {
    return;
  }
  if (order_kind_ == Order::AtOnce) {
    finish_all(lock);
    return;
  }
  if (calls_++ % 16 == 0) {
    change_mood();
  }
  while (std::uniform_real_distribution<>(0, 1)(random_) < eagerness_) {
    Stream* stream = random_stream();
    if (stream == nullptr) {
      return;
    }
    step(lock, *stream);
  }
}

void Scheduler::step(Lock& lock, Stream& stream) {
  Work work = std::move(stream.queue.front());
  stream.queue.pop_front();
  if (stream.queue.empty()) {
    busy_.erase(std::find(busy_.begin(), busy_.end(), &stream));
  }
  run(lock, stream, work);
  if (stream.retired && stream.queue.empty()) {
    forget(stream);
  }
}

void Scheduler::run(Lock& lock, Stream& stream, Work& work) {
  if (context_error() != cudaSuccess && work.kind != Kind::Record) {
    return; // what is left in the queues of a lost context never happens
  }
  switch (work.kind) {
    case Kind::Copy:
      std::memcpy(
          memory().bytes_of(static_cast<char*>(work.to)),
          work.staged != nullptr ? work.staged->data() : memory().bytes_of(static_cast<const char*>(work.from)),
          work.bytes);
      break;
    case Kind::Fill: std::memset(memory().bytes_of(static_cast<char*>(work.to)), work.value, work.bytes); break;
    case Kind::Kernel: {
      char message[1000] = "";
      const int error = work.kernel->run(work.kernel->data, message, sizeof message);
      if (error != cudaSuccess) {
        lose_context(static_cast<cudaError_t>(error), work.kernel->name + ": " + message);
      }
      break;
    }
    case Kind::Record: work.fence->passed = true; break;
    case Kind::Wait: break;
    case Kind::HostFunction:
      // It may need locks that another thread holds while it waits for this one.
      stream.busy = true;
      lock.unlock();
      work.function(work.data);
      lock.lock();
      stream.busy = false;
      idle_.notify_all();
      break;
    case Kind::Free: memory().release(work.to); break;
  }
}

void Scheduler::finish(Lock& lock, const FencePtr& fence) {
  while (!fence->passed) {
    Stream* stream = needed_for(*fence);
    if (stream == nullptr) {
      idle_.wait(lock);
      continue;
    }
    if (order_kind_ == Order::Random && std::uniform_real_distribution<>(0, 1)(random_) < distraction_) {
      if (Stream* other = random_stream()) {
        step(lock, *other);
        continue;
      }
    }
    step(lock, *stream);
  }
}

void Scheduler::finish(Lock& lock, Stream& stream) {
  if (!stream.queue.empty() || stream.busy) {
    finish(lock, record(lock, stream));
  }
  stream.asked = 0;
}

void Scheduler::finish(Lock& lock, std::vector<Stream*> streams) {
  streams.erase(
      std::remove_if(
          streams.begin(), streams.end(), [](Stream* stream) { return stream->queue.empty() && !stream->busy; }),
      streams.end());
  if (order_kind_ == Order::Random) {
    std::shuffle(streams.begin(), streams.end(), random_);
  }
  for (Stream* stream : streams) {
    if (knows(stream)) { // a retired one goes when it is empty
      finish(lock, *stream);
    }
  }
}

void Scheduler::finish_all(Lock& lock) {
  std::vector<Stream*> streams = busy_;
  std::copy_if(order_.begin(), order_.end(), std::back_inserter(streams), [](Stream* stream) {
    return stream->busy && stream->queue.empty(); // the last of its work is a host function that runs now
  });
  finish(lock, std::move(streams));
}

bool Scheduler::host_range_in_use(const void* begin, size_t bytes) const {
  const auto* first = static_cast<const char*>(begin);
  const auto inside = [&](const void* pointer) { return pointer >= first && pointer < first + bytes; };
  for (const Stream* stream : busy_) {
    for (const Work& work : stream->queue) {
      if (work.kind == Kind::Copy && (inside(work.to) || (work.staged == nullptr && inside(work.from)))) {
        return true;
      }
    }
  }
  return false;
}

Scheduler& scheduler() {
  static Scheduler* made = [] {
    auto* scheduler = new Scheduler;
    scheduler->seed(settings().seed);
    return scheduler;
  }();
  return *made;
}

} // namespace standin
