// How long things take in virtual time, in seconds. Behind the ledger's mutex, like all state.
#pragma once

#include <array>
#include <cstdint>

namespace simulated {

enum Link { kHostToDevice, kDeviceToHost, kLinks };

struct LinkSpeed {
  double bytes_per_second = 20e9;
  double latency = 10e-6;
};

struct Speeds {
  std::array<LinkSpeed, kLinks> links; // each device has a link of its own in each direction
  double launch = 5e-6; // each kernel
  double per_byte = 1e-12; // and each byte of its operands
};

inline Speeds& speeds() {
  static auto* instance = new Speeds();
  return *instance;
}

} // namespace simulated
