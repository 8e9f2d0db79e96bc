#include "device/clock.h"

#include <algorithm>

namespace standin {

double Clock::seconds_of(const std::string& name, double bytes, double flops) const {
  const auto found = table.find(name);
  const KernelSpeed& speed = found == table.end() ? kernels : found->second;
  return speed.launch + speed.per_byte * bytes + speed.per_flop * flops;
}

void Clock::issue(Stream& stream, const Work& work) {
  double begin = std::max(stream.seconds, host_seconds);
  switch (work.kind) {
    case Kind::Record: work.fence->seconds = stream.seconds = begin; return;
    case Kind::Wait: stream.seconds = std::max(begin, work.fence->seconds); return;
    case Kind::Copy:
      if (work.link >= 0) {
        double& free = engine_free_[{stream.device, work.link}];
        begin = std::max(begin, free);
        free = begin + links[work.link].latency + work.bytes / links[work.link].bandwidth;
        stream.seconds = free;
        return;
      }
      [[fallthrough]];
    default: stream.seconds = begin + work.seconds;
  }
}

void Clock::host_waits_for(double seconds) {
  host_seconds = std::max(host_seconds, seconds);
}

Clock& device_clock() {
  static auto* made = new Clock;
  return *made;
}

} // namespace standin
