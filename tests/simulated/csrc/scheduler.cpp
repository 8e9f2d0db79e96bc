#include "scheduler.h"

#include <c10/util/Exception.h>

namespace simulated {
namespace {

thread_local c10::DeviceIndex thread_device = 0;
thread_local std::array<Lane, kDevices> thread_lanes = [] {
  std::array<Lane, kDevices> lanes;
  for (c10::DeviceIndex device = 0; device < kDevices; ++device) {
    lanes[device] = device;
  }
  return lanes;
}();

} // namespace

Scheduler::Scheduler() {
  for (c10::DeviceIndex device = 0; device < kDevices; ++device) {
    new_lane(device);
  }
}

Lane Scheduler::new_lane(c10::DeviceIndex device) {
  lanes_.push_back({device, {}, {}, 0});
  return static_cast<Lane>(lanes_.size()) - 1;
}

Epoch Scheduler::launch(Lane lane) {
  drain(lane);
  auto& clock = lanes_[lane].clock;
  clock.join(host_);
  return {lane, clock.tick(lane)};
}

Epoch Scheduler::enqueue(Lane lane, std::function<void()> operation) {
  auto& state = lanes_[lane];
  state.clock.join(host_);
  const int64_t time = state.clock.tick(lane);
  state.queue.push_back({time, std::move(operation)});
  return {lane, time};
}

EventMark Scheduler::record(Lane lane) {
  auto& clock = lanes_[lane].clock;
  clock.join(host_);
  return {lane, clock, begin(lane)};
}

double Scheduler::begin(Lane lane) const {
  return std::max(lanes_[lane].seconds, host_seconds_);
}

void Scheduler::take(Lane lane, double seconds) {
  lanes_[lane].seconds = begin(lane) + seconds;
}

void Scheduler::take_kernel(Lane lane, int64_t nbytes) {
  take(lane, speeds().launch + speeds().per_byte * nbytes);
}

void Scheduler::take_link(Lane lane, Link link, int64_t nbytes) {
  const LinkSpeed& speed = speeds().links[link];
  double& free = link_free_[lanes_[lane].device][link];
  free = std::max(begin(lane), free) + speed.latency + nbytes / speed.bytes_per_second;
  lanes_[lane].seconds = free;
}

void Scheduler::wait(Lane lane, const EventMark& mark) {
  if (lane == mark.lane) {
    return;
  }
  const Epoch awaited = mark.epoch();
  if (!ran(awaited)) {
    enqueue(lane, [this, awaited] { drain(awaited); });
  }
  lanes_[lane].clock.join(mark.clock);
  lanes_[lane].seconds = std::max(lanes_[lane].seconds, mark.seconds);
}

bool Scheduler::ran(Epoch epoch) const {
  const auto& queue = lanes_[epoch.lane].queue;
  return queue.empty() || queue.front().time > epoch.time;
}

void Scheduler::drain(Epoch epoch) {
  while (!ran(epoch)) {
    auto& queue = lanes_[epoch.lane].queue;
    Operation operation = std::move(queue.front());
    queue.pop_front();
    operation.run();
  }
}

void Scheduler::drain_all() {
  for (Lane lane = 0; lane < static_cast<Lane>(lanes_.size()); ++lane) {
    drain(lane);
  }
}

void Scheduler::host_wait(const EventMark& mark) {
  drain(mark.epoch());
  host_.join(mark.clock);
  host_seconds_ = std::max(host_seconds_, mark.seconds);
}

void Scheduler::host_wait_device(c10::DeviceIndex device) {
  for (Lane lane = 0; lane < static_cast<Lane>(lanes_.size()); ++lane) {
    if (lanes_[lane].device == device) {
      host_wait(lane);
    }
  }
}

bool Scheduler::host_poll(const EventMark& mark) {
  if (ran(mark.epoch())) {
    host_.join(mark.clock);
    return true;
  }
  drain(Epoch{mark.lane, lanes_[mark.lane].queue.front().time});
  return false;
}

Scheduler& scheduler() {
  static auto* instance = new Scheduler();
  return *instance;
}

c10::DeviceIndex current_device() {
  return thread_device;
}

void check_device(c10::DeviceIndex device) {
  TORCH_CHECK(
      device >= 0 && device < kDevices,
      "sim:", int(device), " does not exist: there are ", int(kDevices), " simulated devices, sim:0 to sim:", kDevices - 1);
}

void set_current_device(c10::DeviceIndex device) {
  thread_device = device;
}

Lane current_lane(c10::DeviceIndex device) {
  return thread_lanes[device];
}

void set_current_lane(Lane lane, c10::DeviceIndex device) {
  thread_lanes[device] = lane;
}

} // namespace simulated
