// Device memory and pinned host memory: allocation, accounting, poison, and the happens-before check over byte ranges.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <set>
#include <vector>

#include <c10/core/CachingDeviceAllocator.h>

#include "scheduler.h"

namespace simulated {

constexpr unsigned char kPoison = 0xFF; // NaN in every float type
constexpr size_t kAlignment = 512; // as CUDA's caching allocator
constexpr size_t kQuarantineBytes = size_t(256) << 20;

struct Range {
  const char* begin = nullptr;
  const char* end = nullptr;

  bool empty() const {
    return begin >= end;
  }
  bool overlaps(const Range& other) const {
    return begin < other.end && other.begin < end;
  }
  bool contains(const Range& other) const {
    return begin <= other.begin && other.end <= end;
  }
  bool operator==(const Range& other) const {
    return begin == other.begin && end == other.end;
  }
  size_t size() const {
    return end - begin;
  }
};

enum class Mode { Read, Write };

struct Access {
  Range range;
  Epoch by;
  Mode mode;
  const char* what; // name of the operation; lives for ever
};

enum class Space { Device, Pinned };

struct Block {
  Space space;
  c10::DeviceIndex device;
  size_t nbytes;
  Lane owner; // the stream that was current at allocation
  std::set<Lane> recorded; // record_stream
  std::vector<Access> accesses;
};

// Each member except the allocators' own requires that the caller holds a Lock.
class Memory {
 public:
  void* allocate(Space space, c10::DeviceIndex device, size_t nbytes);
  void release(void* pointer);
  // Returns quarantined memory to the system.
  void trim();

  Block* find(const void* pointer);
  bool is_pinned(const void* pointer) {
    Block* block = find(pointer);
    return block != nullptr && block->space == Space::Pinned;
  }

  // Checks one access of operation `by` against all earlier ones of other streams, and remembers it.
  void access(Range range, Epoch by, Mode mode, const char* what);
  // Executes the queued operations that `lane` is ordered after and that conflict with an access to `range` now.
  void settle(Range range, Lane lane, Mode mode);
  void record_stream(const void* pointer, Lane lane);

 private:
  void check_device_release(const Block& block);
  void check_pinned_release(const Block& block);

  std::map<const char*, Block> blocks_;
  std::deque<std::pair<void*, size_t>> quarantine_;
  size_t quarantined_ = 0;
};

// Called before each allocation of device, pinned ("pinned") and ordinary host memory ("host") by PyTorch, with no lock
// held; what it throws is what the allocation throws. An empty one is never called.
using AllocationHook = std::function<void(const char* space, size_t nbytes)>;
void set_allocation_hook(AllocationHook hook);

Memory& memory();
c10::DeviceAllocator& device_allocator();
c10::Allocator& pinned_allocator();

} // namespace simulated
