// Copies between host and device, and within the device. Which of them make the host wait follows CUDA:
//   * not asked to be non-blocking: the host waits for the copy;
//   * from pageable host memory: the host waits for the stream, the bytes are staged, the copy itself stays queued;
//   * to pageable host memory: the host waits for the copy;
//   * host memory pinned, same dtype and layout: the host waits for nothing;
//   * within the device: the host never waits.
#include <cstring>

#include "tensors.h"

namespace simulated {
namespace {

uint64_t checksum(const Range& range) {
  uint64_t hash = 1469598103934665603ull;
  const char* byte = range.begin;
  for (; byte + sizeof(uint64_t) <= range.end; byte += sizeof(uint64_t)) {
    uint64_t word;
    std::memcpy(&word, byte, sizeof(word));
    hash = (hash ^ word) * 1099511628211ull;
    hash ^= hash >> 29;
  }
  for (; byte < range.end; ++byte) {
    hash = (hash ^ static_cast<unsigned char>(*byte)) * 1099511628211ull;
  }
  return hash;
}

// One transfer of bytes; anything else goes through temporaries, and so makes the host wait.
bool is_plain(const at::Tensor& source, const at::Tensor& destination) {
  return source.dtype() == destination.dtype() && source.sizes() == destination.sizes() &&
      source.strides() == destination.strides() && source.is_non_overlapping_and_dense() &&
      source.is_conj() == destination.is_conj() && source.is_neg() == destination.is_neg();
}

void copy_bytes(const at::Tensor& source, const at::Tensor& destination) {
  Internal internal;
  as_cpu(destination).copy_(as_cpu(source));
}

const char* describe(CopyKind kind) {
  switch (kind) {
    case CopyKind::HostToDevice:
      return "host-to-device copy";
    case CopyKind::DeviceToHost:
      return "device-to-host copy";
    default:
      return "device-to-device copy";
  }
}

struct Copy {
  const at::Tensor& source;
  const at::Tensor& destination;
  CopyKind kind;
  Lane lane;

  void note(Epoch by) const {
    memory().access(range_of(source), by, Mode::Read, describe(kind));
    memory().access(range_of(destination), by, Mode::Write, describe(kind));
  }

  void run_now() const {
    note(scheduler().launch(lane));
    copy_bytes(source, destination);
  }

  void run_and_wait() const {
    ++ledger().host_syncs;
    run_now();
    scheduler().host_wait(lane);
  }

  // The queue holds bare pointers, as a device does: the memory they point to may be freed, but stays in quarantine.
  void run_later() const {
    const Range written = range_of(destination), read = range_of(source);
    const bool from_host = kind == CopyKind::HostToDevice;
    const uint64_t expected = from_host ? checksum(read) : 0;
    memory().settle(written, lane);
    Internal internal;
    auto from = at::from_blob(data_of(source), source.sizes(), source.strides(), at::TensorOptions().dtype(source.dtype()));
    auto queued = scheduler().enqueue(lane, [from, to = as_cpu(destination), read, expected, from_host] {
      if (from_host && memory().find(read.begin) != nullptr && checksum(read) != expected) {
        ledger().race("pinned host memory overwritten before a queued host-to-device copy read it");
      }
      copy_bytes(from, to);
    });
    note(queued);
    poison(written);
  }

  void stage_and_run_later() const {
    ++ledger().host_syncs;
    scheduler().host_wait(lane);
    const Range written = range_of(destination);
    memory().settle(written, lane);
    Internal internal;
    auto queued = scheduler().enqueue(lane, [staged = source.clone(), to = as_cpu(destination)] { copy_bytes(staged, to); });
    memory().access(written, queued, Mode::Write, describe(kind));
    if (destination.is_non_overlapping_and_dense()) {
      poison(written);
    }
  }

  // Runs on the current stream of the source's device, which waits for the destination's before, and the other way after.
  void run_between_devices() const {
    const Lane other = current_lane(destination.device().index());
    scheduler().wait(lane, other);
    run_now();
    scheduler().wait(other, lane);
  }

 private:
  static void poison(Range range) {
    std::memset(const_cast<char*>(range.begin), kPoison, range.size());
  }
};

} // namespace

at::Tensor copy_from(const at::Tensor& source, const at::Tensor& destination, bool non_blocking) {
  if (operator_depth > 0) {
    copy_bytes(source, destination);
    return destination;
  }
  const CopyKind kind = !is_sim(source) ? CopyKind::HostToDevice
      : !is_sim(destination)            ? CopyKind::DeviceToHost
                                        : CopyKind::DeviceToDevice;
  const auto device = (is_sim(source) ? source : destination).device().index();
  Lock lock;
  const Lane lane = current_lane(device);
  ledger().copied(kind, source.numel() * source.element_size(), stream_id(lane));
  if (destination.numel() == 0) {
    return destination;
  }
  const Copy copy{source, destination, kind, lane};
  const bool plain = is_plain(source, destination);
  if (kind == CopyKind::DeviceToDevice) {
    if (source.device() != destination.device()) {
      copy.run_between_devices();
    } else if (non_blocking && plain) {
      copy.run_later();
    } else {
      copy.run_now();
    }
  } else if (!non_blocking) {
    copy.run_and_wait();
  } else if (plain && memory().is_pinned(data_of(kind == CopyKind::HostToDevice ? source : destination))) {
    copy.run_later();
  } else if (kind == CopyKind::HostToDevice) {
    copy.stage_and_run_later();
  } else {
    copy.run_and_wait();
  }
  return destination;
}

} // namespace simulated
