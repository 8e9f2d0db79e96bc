// What the tests read: bytes, copies, races and host synchronisations. All state of the device is behind one mutex.
#pragma once

#include <Python.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <c10/core/Device.h>

namespace simulated {

constexpr auto kSim = c10::DeviceType::PrivateUse1;
constexpr c10::DeviceIndex kDevices = 2;
constexpr size_t kMaxLogged = 100;

// Recursive because releasing memory can happen inside an operation that already holds it. Whoever has to wait for it lets
// go of the Python interpreter lock meanwhile: its holder may need that one, as handling a tensor that Python knows does.
class Lock {
 public:
  Lock() : guard_(mutex(), std::try_to_lock) {
    if (!guard_.owns_lock()) {
      wait();
    }
  }

 private:
  static std::recursive_mutex& mutex() {
    static auto* instance = new std::recursive_mutex();
    return *instance;
  }
  void wait() {
    if (!Py_IsInitialized() || !PyGILState_Check()) {
      guard_.lock();
      return;
    }
    PyThreadState* interpreter = PyEval_SaveThread();
    guard_.lock();
    PyEval_RestoreThread(interpreter);
  }
  std::unique_lock<std::recursive_mutex> guard_;
};

struct Usage {
  int64_t live = 0;
  int64_t peak = 0;

  void add(int64_t nbytes) {
    live += nbytes;
    peak = std::max(peak, live);
  }
  void reset_peak() {
    peak = live;
  }
};

enum class CopyKind { HostToDevice, DeviceToHost, DeviceToDevice };

inline const char* name(CopyKind kind) {
  switch (kind) {
    case CopyKind::HostToDevice:
      return "h2d";
    case CopyKind::DeviceToHost:
      return "d2h";
    default:
      return "d2d";
  }
}

struct CopyRecord {
  CopyKind kind;
  int64_t nbytes;
  int64_t stream;
};

struct Ledger {
  Usage device_total, pinned;
  std::array<Usage, kDevices> devices;
  std::array<int64_t, kDevices> capacity;
  int64_t h2d = 0, d2h = 0, copies = 0, races = 0, host_syncs = 0;
  std::vector<std::string> race_log;
  bool log_copies = false;
  std::vector<CopyRecord> copy_log;

  Ledger() {
    capacity.fill(int64_t(8) << 30);
  }

  void race(std::string what) {
    ++races;
    if (race_log.size() < kMaxLogged) {
      race_log.push_back(std::move(what));
    }
  }

  void copied(CopyKind kind, int64_t nbytes, int64_t stream) {
    ++copies;
    if (kind == CopyKind::HostToDevice) {
      h2d += nbytes;
    } else if (kind == CopyKind::DeviceToHost) {
      d2h += nbytes;
    }
    if (log_copies) {
      copy_log.push_back({kind, nbytes, stream});
    }
  }

  void reset_peaks() {
    device_total.reset_peak();
    pinned.reset_peak();
    for (auto& usage : devices) {
      usage.reset_peak();
    }
  }

  void reset() {
    reset_peaks();
    h2d = d2h = copies = races = host_syncs = 0;
    race_log.clear();
    copy_log.clear();
  }
};

inline Ledger& ledger() {
  static auto* instance = new Ledger();
  return *instance;
}

} // namespace simulated
