// Virtual time: how long a device would take, from the program alone.
//
// It is worked out while work is issued. A stream is a lane: what is issued on it begins when the host has issued it
// and everything before it is over. A copy between host and device also waits for its engine; each device has one for
// each direction. Issuing takes the host no time. When the host waits, its time becomes that of what it waited for.
#pragma once

#include <array>
#include <map>
#include <string>

#include "device/work.h"

namespace standin {

struct KernelSpeed {
  double launch = 5e-6; // seconds
  double per_byte = 1e-12; // of its operands
  double per_flop = 0; // of products of matrices, convolutions, attention
};

struct LinkSpeed {
  double latency = 10e-6; // seconds
  double bandwidth = 20e9; // bytes a second
};

class Clock {
 public:
  // Seconds that a kernel takes.
  double seconds_of(const std::string& name, double bytes, double flops) const;

  // Lets `stream` take the time of `work`; of a point that is recorded, notes it.
  void issue(Stream& stream, const Work& work);

  // Of work within a graph: the host issues it no earlier than now.
  void host_waits_for(double seconds);

  double host_seconds = 0;
  std::array<LinkSpeed, 2> links; // to the device, from it
  KernelSpeed kernels; // of those that are not in the table
  std::map<std::string, KernelSpeed> table; // by name of the operator

 private:
  std::map<std::pair<int, int>, double> engine_free_; // by device and direction
};

Clock& device_clock();

} // namespace standin
