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

// The same bytes as a CPU tensor that owns nothing and keeps nothing alive.
at::Tensor bare(const at::Tensor& tensor) {
  Internal internal;
  return at::from_blob(data_of(tensor), tensor.sizes(), tensor.strides(), at::TensorOptions().dtype(tensor.dtype()));
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

CopyKind kind_of(const at::Tensor& source, const at::Tensor& destination) {
  if (!is_sim(source)) {
    return CopyKind::HostToDevice;
  }
  return is_sim(destination) ? CopyKind::DeviceToDevice : CopyKind::DeviceToHost;
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
    take_time();
    copy_bytes(source, destination);
  }

  void run_and_wait() const {
    ++ledger().host_syncs;
    run_now();
    scheduler().host_wait(lane);
  }

  // The queue holds bare pointers, as a device does: the memory they point to may be freed, but stays in quarantine.
  void run_later() const {
    const Range read = range_of(source);
    const bool from_host = kind == CopyKind::HostToDevice;
    if (from_host) {
      memory().settle(read, lane, Mode::Read); // only writes that are still to come are wrong
    }
    const uint64_t expected = from_host ? checksum(read) : 0;
    prepare_destination();
    auto queued = scheduler().enqueue(lane, [from = bare(source), to = bare(destination), read, expected, from_host] {
      if (from_host && memory().find(read.begin) != nullptr && checksum(read) != expected) {
        ledger().race("pinned host memory overwritten before a queued host-to-device copy read it");
      }
      copy_bytes(from, to);
    });
    take_time();
    note(queued);
  }

  void stage_and_run_later() const {
    ++ledger().host_syncs;
    scheduler().host_wait(lane);
    prepare_destination();
    Internal internal;
    auto queued = scheduler().enqueue(lane, [from = source.clone(), to = bare(destination)] { copy_bytes(from, to); });
    take_time();
    memory().access(range_of(destination), queued, Mode::Write, describe(kind));
  }

  // Runs on the current stream of the source's device, which waits for the destination's before, and the other way after.
  void run_between_devices() const {
    const Lane other = current_lane(destination.device().index());
    scheduler().wait(lane, other);
    run_now();
    scheduler().wait(other, lane);
  }

 private:
  void take_time() const {
    const int64_t nbytes = source.numel() * source.element_size();
    if (kind == CopyKind::DeviceToDevice) {
      scheduler().take_kernel(lane, 2 * nbytes);
    } else {
      scheduler().take_link(lane, kind == CopyKind::HostToDevice ? kHostToDevice : kDeviceToHost, nbytes);
    }
  }

  // Between now and the copy nobody may count on the old bytes or on the new ones.
  void prepare_destination() const {
    const Range written = range_of(destination);
    memory().settle(written, lane, Mode::Write);
    if (destination.is_non_overlapping_and_dense()) {
      std::memset(const_cast<char*>(written.begin), kPoison, written.size());
    }
  }
};

} // namespace

at::Tensor copy_from(const at::Tensor& source, const at::Tensor& destination, bool non_blocking) {
  if (operator_depth > 0) {
    copy_bytes(source, destination);
    return destination;
  }
  const CopyKind kind = kind_of(source, destination);
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
