// Vector clocks over lanes. A lane is one stream of one device; its time counts the operations issued on it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace simulated {

using Lane = int64_t;

// One operation: the `time`-th one issued on `lane`.
struct Epoch {
  Lane lane = 0;
  int64_t time = 0;
};

// The latest operation of every lane that its holder is ordered after.
class VectorClock {
 public:
  int64_t operator[](Lane lane) const {
    return static_cast<size_t>(lane) < times_.size() ? times_[lane] : 0;
  }

  bool covers(Epoch epoch) const {
    return (*this)[epoch.lane] >= epoch.time;
  }

  int64_t tick(Lane lane) {
    if (static_cast<size_t>(lane) >= times_.size()) {
      times_.resize(lane + 1);
    }
    return ++times_[lane];
  }

  void join(const VectorClock& other) {
    if (other.times_.size() > times_.size()) {
      times_.resize(other.times_.size());
    }
    for (size_t lane = 0; lane < other.times_.size(); ++lane) {
      times_[lane] = std::max(times_[lane], other.times_[lane]);
    }
  }

 private:
  std::vector<int64_t> times_;
};

} // namespace simulated
