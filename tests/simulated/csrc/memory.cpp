#include "memory.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>

#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

namespace simulated {
namespace {

std::string stream_name(Lane lane) {
  return c10::str("stream ", stream_id(lane), " of sim:", int(scheduler().device_of(lane)));
}

std::string verb(Mode mode, bool past) {
  if (mode == Mode::Read) {
    return past ? "read" : "reads";
  }
  return past ? "wrote" : "writes";
}

std::string describe(const Block& block, const char* begin, const Range& range) {
  return c10::str("bytes ", range.begin - begin, " to ", range.end - begin, " of a block of ", block.nbytes);
}

} // namespace

void* Memory::allocate(Space space, c10::DeviceIndex device, size_t nbytes) {
  auto& book = ledger();
  if (space == Space::Device) {
    auto& usage = book.devices[device];
    TORCH_CHECK_WITH(
        OutOfMemoryError,
        usage.live + int64_t(nbytes) <= book.capacity[device],
        "sim:", int(device), " is out of memory: tried to allocate ", nbytes, " bytes with ", usage.live, " of ",
        book.capacity[device], " bytes in use");
  }
  void* pointer = nullptr;
  if (posix_memalign(&pointer, kAlignment, nbytes) != 0) {
    throw std::bad_alloc();
  }
  std::memset(pointer, kPoison, nbytes);
  const Lane owner = current_lane(device);
  Block block{space, device, nbytes, owner, {}, {}};
  if (space == Space::Device) {
    // A real allocator may hand out bytes that earlier work of this stream still uses: others have to wait for that work.
    const char* begin = static_cast<const char*>(pointer);
    block.accesses.push_back({{begin, begin + nbytes}, scheduler().now(owner), Mode::Write, "allocation"});
    book.device_total.add(nbytes);
    book.devices[device].add(nbytes);
  } else {
    book.pinned.add(nbytes);
  }
  blocks_.emplace(static_cast<const char*>(pointer), std::move(block));
  return pointer;
}

void Memory::release(void* pointer) {
  auto found = blocks_.find(static_cast<const char*>(pointer));
  TORCH_INTERNAL_ASSERT(found != blocks_.end(), "released twice");
  const Block& block = found->second;
  const size_t nbytes = block.nbytes;
  if (block.space == Space::Device) {
    check_device_release(block);
    ledger().device_total.add(-int64_t(nbytes));
    ledger().devices[block.device].add(-int64_t(nbytes));
  } else {
    check_pinned_release(block);
    ledger().pinned.add(-int64_t(nbytes));
  }
  blocks_.erase(found);
  std::memset(pointer, kPoison, nbytes);
  quarantine_.emplace_back(pointer, nbytes);
  quarantined_ += nbytes;
  if (quarantined_ > kQuarantineBytes) {
    scheduler().drain_all(); // a queued copy may still point into it
  }
  while (quarantined_ > kQuarantineBytes) {
    quarantined_ -= quarantine_.front().second;
    std::free(quarantine_.front().first);
    quarantine_.pop_front();
  }
}

void Memory::check_device_release(const Block& block) {
  bool reported = false;
  for (const Access& earlier : block.accesses) {
    if (earlier.by.lane == block.owner || block.recorded.count(earlier.by.lane) != 0 ||
        scheduler().knows(block.owner, earlier.by)) {
      scheduler().drain(earlier.by); // it must see the bytes before they are poisoned
    } else if (!reported) {
      reported = true;
      ledger().race(c10::str(
          "memory of ", stream_name(block.owner), " freed while ", earlier.what, " on ", stream_name(earlier.by.lane),
          " may still use it: no record_stream, and no wait for that use (block of ", block.nbytes, ")"));
    }
  }
}

void Memory::check_pinned_release(const Block& block) {
  for (const Access& earlier : block.accesses) {
    if (!scheduler().ran(earlier.by)) {
      ledger().race(c10::str(
          "pinned host memory freed before a queued ", earlier.what, " on ", stream_name(earlier.by.lane), " ran (block of ",
          block.nbytes, ")"));
      return;
    }
  }
}

void Memory::trim() {
  scheduler().drain_all();
  for (auto& [pointer, nbytes] : quarantine_) {
    std::free(pointer);
  }
  quarantine_.clear();
  quarantined_ = 0;
}

Block* Memory::find(const void* pointer) {
  const char* address = static_cast<const char*>(pointer);
  auto after = blocks_.upper_bound(address);
  if (after == blocks_.begin()) {
    return nullptr;
  }
  auto& [begin, block] = *std::prev(after);
  return address < begin + block.nbytes ? &block : nullptr;
}

void Memory::access(Range range, Epoch by, Mode mode, const char* what) {
  if (range.empty()) {
    return;
  }
  auto after = blocks_.upper_bound(range.begin);
  if (after == blocks_.begin()) {
    return;
  }
  auto& [begin, block] = *std::prev(after);
  if (range.begin >= begin + block.nbytes) {
    return;
  }
  bool reported = false, known = false;
  auto& accesses = block.accesses;
  size_t kept = 0;
  for (Access& earlier : accesses) {
    bool keep = true;
    if (earlier.range.overlaps(range)) {
      if (scheduler().knows(by.lane, earlier.by)) {
        // Whoever races with an access that this write covers and follows also races with this write.
        keep = mode == Mode::Read || !range.contains(earlier.range);
        if (keep && earlier.by.lane == by.lane && earlier.mode == mode && earlier.range == range) {
          earlier.by = by;
          earlier.what = what;
          known = true;
        }
      } else if ((mode == Mode::Write || earlier.mode == Mode::Write) && !reported) {
        reported = true;
        ledger().race(c10::str(
            what, " on ", stream_name(by.lane), " ", verb(mode, false), " memory that ", earlier.what, " on ",
            stream_name(earlier.by.lane), " ", verb(earlier.mode, true), ", without having waited for it (",
            describe(block, begin, range), ")"));
      }
    }
    if (keep) {
      accesses[kept++] = earlier;
    }
  }
  accesses.resize(kept);
  if (!known) {
    accesses.push_back({range, by, mode, what});
  }
}

void Memory::settle(Range range, Lane lane, Mode mode) {
  if (Block* block = find(range.begin)) {
    for (const Access& earlier : block->accesses) {
      const bool conflicts = mode == Mode::Write || earlier.mode == Mode::Write;
      if (conflicts && earlier.range.overlaps(range) && scheduler().knows(lane, earlier.by)) {
        scheduler().drain(earlier.by);
      }
    }
  }
}

void Memory::record_stream(const void* pointer, Lane lane) {
  if (Block* block = find(pointer)) {
    block->recorded.insert(lane);
  }
}

Memory& memory() {
  static auto* instance = new Memory();
  return *instance;
}

namespace {

void release_pointer(void* pointer) {
  if (pointer != nullptr) {
    Lock lock;
    memory().release(pointer);
  }
}

std::atomic<bool> hooked{false};
std::mutex hook_mutex;
std::shared_ptr<AllocationHook> hook;

void announce(const char* space, size_t nbytes) {
  if (nbytes == 0 || !hooked.load(std::memory_order_relaxed)) {
    return;
  }
  std::shared_ptr<AllocationHook> present;
  {
    std::lock_guard<std::mutex> guard(hook_mutex);
    present = hook;
  }
  if (present != nullptr) {
    (*present)(space, nbytes);
  }
}

// Stands before PyTorch's own allocator of ordinary host memory, so that its allocations are announced too.
struct HostAllocator final : c10::Allocator {
  explicit HostAllocator(c10::Allocator* inner) : inner_(inner) {}

  c10::DataPtr allocate(size_t nbytes) override {
    announce("host", nbytes);
    return inner_->allocate(nbytes);
  }
  bool is_simple_data_ptr(const c10::DataPtr& pointer) const override {
    return inner_->is_simple_data_ptr(pointer);
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return inner_->raw_deleter();
  }
  void copy_data(void* destination, const void* source, std::size_t nbytes) const override {
    inner_->copy_data(destination, source, nbytes);
  }

 private:
  c10::Allocator* inner_;
};

struct SimAllocator final : c10::DeviceAllocator {
  c10::DataPtr allocate(size_t nbytes) override {
    announce("device", nbytes);
    Lock lock;
    const auto device = current_device();
    void* pointer = nbytes != 0 ? memory().allocate(Space::Device, device, nbytes) : nullptr;
    return {pointer, pointer, &release_pointer, c10::Device(kSim, device)};
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return &release_pointer;
  }
  void copy_data(void* destination, const void* source, std::size_t nbytes) const override {
    default_copy_data(destination, source, nbytes);
  }

  bool initialized() override {
    return true;
  }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr& pointer, c10::Stream stream) override {
    Lock lock;
    memory().record_stream(pointer.get(), lane_of(stream));
  }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    check_device(device);
    Lock lock;
    const Usage& usage = ledger().devices[device];
    c10::CachingDeviceAllocator::DeviceStats stats;
    for (auto* sum : {&stats.allocated_bytes, &stats.reserved_bytes, &stats.active_bytes, &stats.requested_bytes}) {
      (*sum)[0].current = usage.live;
      (*sum)[0].peak = usage.peak;
    }
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex device) override {
    check_device(device);
    Lock lock;
    ledger().devices[device].reset_peak();
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex device) override {
    check_device(device);
    Lock lock;
    const int64_t capacity = ledger().capacity[device];
    return {capacity - ledger().devices[device].live, capacity};
  }
};

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t nbytes) override {
    announce("pinned", nbytes);
    Lock lock;
    void* pointer = memory().allocate(Space::Pinned, current_device(), std::max<size_t>(nbytes, 1));
    return {pointer, pointer, &release_pointer, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return &release_pointer;
  }
  void copy_data(void* destination, const void* source, std::size_t nbytes) const override {
    default_copy_data(destination, source, nbytes);
  }
};

} // namespace

void set_allocation_hook(AllocationHook next) {
  static std::once_flag once;
  std::call_once(once, [] { c10::SetCPUAllocator(new HostAllocator(c10::GetCPUAllocator()), 1); });
  std::lock_guard<std::mutex> guard(hook_mutex);
  hooked = bool(next);
  hook = next ? std::make_shared<AllocationHook>(std::move(next)) : nullptr;
}

c10::DeviceAllocator& device_allocator() {
  static auto* instance = new SimAllocator();
  return *instance;
}

c10::Allocator& pinned_allocator() {
  static auto* instance = new PinnedAllocator();
  return *instance;
}

} // namespace simulated
