// Streams and events.
//
// Three things are kept apart. *Order* is what the program asked for: a vector clock per lane, one for the host, and a copy
// of the clock in every event. *Execution* is what happened so far: kernels run when issued, deferred copies as late as
// something forces them. Races are judged by order alone, so they are found even where execution happened to be kind.
// *Time* is virtual: when each operation would end on a device of the speeds in speeds.h, worked out as it is issued, so
// it depends on the program alone.
#pragma once

#include <deque>
#include <functional>

#include <c10/core/Stream.h>

#include "clock.h"
#include "ledger.h"
#include "speeds.h"

namespace simulated {

struct EventMark {
  Lane lane = 0;
  VectorClock clock;
  double seconds = 0;

  Epoch epoch() const {
    return {lane, clock[lane]};
  }
};

// Each member requires that the caller holds a Lock.
class Scheduler {
 public:
  Scheduler();

  Lane new_lane(c10::DeviceIndex device);
  c10::DeviceIndex device_of(Lane lane) const {
    return lanes_[lane].device;
  }

  // Whether work issued now on `lane` comes after `epoch`.
  bool knows(Lane lane, Epoch epoch) const {
    return lanes_[lane].clock.covers(epoch) || host_.covers(epoch);
  }
  Epoch now(Lane lane) const {
    return {lane, lanes_[lane].clock[lane]};
  }

  // Issues an operation that runs at once, after everything `lane` has queued.
  Epoch launch(Lane lane);
  // Issues an operation that runs when something forces it.
  Epoch enqueue(Lane lane, std::function<void()> operation);

  // How long the operation issued last on `lane` takes. It begins when the host has issued it and those before it are over;
  // a copy over a link, when those issued before it on any stream have left the link besides.
  void take(Lane lane, double seconds);
  void take_kernel(Lane lane, int64_t nbytes);
  void take_link(Lane lane, Link link, int64_t nbytes);

  EventMark record(Lane lane);
  void wait(Lane lane, const EventMark& mark);
  void wait(Lane lane, Lane other) {
    wait(lane, record(other));
  }

  bool ran(Epoch epoch) const;
  // Forces execution; creates no order.
  void drain(Epoch epoch);
  void drain(Lane lane) {
    drain(now(lane));
  }
  void drain_all();

  // The calling thread waits. All host threads share one clock: what one has waited for, all have.
  void host_wait(const EventMark& mark);
  void host_wait(Lane lane) {
    host_wait(record(lane));
  }
  void host_wait_device(c10::DeviceIndex device);
  // Polling makes progress, one operation a poll; an answer of yes orders the host after the mark. It takes no time.
  bool host_poll(const EventMark& mark);
  // The host is busy with something of its own.
  void host_take(double seconds) {
    host_seconds_ += seconds;
  }
  double host_seconds() const {
    return host_seconds_;
  }

 private:
  struct Operation {
    int64_t time;
    std::function<void()> run;
  };
  struct LaneState {
    c10::DeviceIndex device;
    VectorClock clock;
    std::deque<Operation> queue;
    double seconds = 0; // when what was issued so far is over
  };

  double begin(Lane lane) const;

  std::deque<LaneState> lanes_;
  VectorClock host_;
  double host_seconds_ = 0;
  std::array<std::array<double, kLinks>, kDevices> link_free_{};
};

Scheduler& scheduler();

// The current device and streams of this thread.
c10::DeviceIndex current_device();
void set_current_device(c10::DeviceIndex device);
Lane current_lane(c10::DeviceIndex device);
void set_current_lane(Lane lane, c10::DeviceIndex device);
void check_device(c10::DeviceIndex device);

// The default stream of a device has stream id 0, as everywhere in PyTorch; a side stream's id is its lane.
inline Lane lane_of(const c10::Stream& stream) {
  return stream.id() == 0 ? stream.device_index() : stream.id();
}
inline int64_t stream_id(Lane lane) {
  return lane < kDevices ? 0 : lane;
}
inline c10::Stream stream_of(Lane lane, c10::DeviceIndex device) {
  return c10::Stream(c10::Stream::UNSAFE, c10::Device(kSim, device), stream_id(lane));
}

} // namespace simulated
