// What tests ask of the stand-in itself.
#include "api/entry.h"
#include "api/launch.h"

#include <algorithm>
#include <cstring>

using namespace standin;

namespace {

size_t give(const std::string& text, char* into, size_t capacity) {
  const size_t length = std::min(text.size(), capacity - 1);
  std::memcpy(into, text.data(), length);
  into[length] = '\0';
  return text.size();
}

} // namespace

// Names of the counters, and their values in the same order. Returns how many there are.
STANDIN_EXPORT int standin_counters(const char** names, long* values) {
  const Lock lock(scheduler().mutex);
  int count = 0;
#define STANDIN_GIVE(name) \
  names[count] = #name;    \
  values[count++] = counters().name;
  STANDIN_COUNTERS(STANDIN_GIVE)
#undef STANDIN_GIVE
  return count;
}

STANDIN_EXPORT void standin_reset_counters() {
  const Lock lock(scheduler().mutex);
  counters() = {};
}

STANDIN_EXPORT size_t standin_used_bytes(int device) {
  const Lock lock(scheduler().mutex);
  return memory().used(device);
}

STANDIN_EXPORT size_t standin_pinned_bytes() {
  const Lock lock(scheduler().mutex);
  return memory().pinned_bytes();
}

// Returns 0 where there is no such setting.
STANDIN_EXPORT int standin_set(const char* name, long long value) {
  const Lock lock(scheduler().mutex);
  long long* found = setting(name);
  if (found == nullptr) {
    return 0;
  }
  *found = value;
  if (found == &settings().seed) {
    scheduler().seed(value);
  }
  return 1;
}

STANDIN_EXPORT long long standin_get(const char* name) {
  const Lock lock(scheduler().mutex);
  const long long* found = setting(name);
  return found == nullptr ? -1 : *found;
}

// Lists, a line each; taken once.
STANDIN_EXPORT size_t standin_take_misuse(char* into, size_t capacity) {
  return give(take_misuse(), into, capacity);
}

STANDIN_EXPORT size_t standin_take_refused_kernels(char* into, size_t capacity) {
  return give(take_refused_kernels(), into, capacity);
}

// The context is as if no kernel had failed; what was queued then is gone.
STANDIN_EXPORT void standin_forgive() {
  Lock lock(scheduler().mutex);
  scheduler().finish_all(lock);
  forgive();
}

STANDIN_EXPORT double standin_host_seconds() {
  const Lock lock(scheduler().mutex);
  return device_clock().host_seconds;
}

STANDIN_EXPORT void standin_host_busy_for(double seconds) {
  const Lock lock(scheduler().mutex);
  device_clock().host_seconds += seconds;
}

STANDIN_EXPORT void standin_set_link(int direction, double latency, double bandwidth) {
  const Lock lock(scheduler().mutex);
  device_clock().links.at(direction) = {latency, bandwidth};
}

// Gives the current device's stream work that does nothing for so long.
STANDIN_EXPORT int standin_compute_for(cudaStream_t handle, double seconds) {
  Lock lock(scheduler().mutex);
  Stream* stream = stream_of(handle);
  if (stream == nullptr) {
    return remember(cudaErrorInvalidResourceHandle);
  }
  Work work{Kind::Fill};
  work.seconds = seconds;
  scheduler().issue(lock, *stream, std::move(work));
  return cudaSuccess;
}

// Of an operator, or, without a name, of all that have no speed of their own.
STANDIN_EXPORT void standin_set_speed(const char* name, double launch, double per_byte, double per_flop) {
  const Lock lock(scheduler().mutex);
  const KernelSpeed speed{launch, per_byte, per_flop};
  if (name == nullptr) {
    device_clock().kernels = speed;
  } else {
    device_clock().table[name] = speed;
  }
}

STANDIN_EXPORT void standin_reset_speeds() {
  const Lock lock(scheduler().mutex);
  device_clock().links = {};
  device_clock().kernels = {};
  device_clock().table.clear();
}
