// Memory: of the devices, and of the host where copies may be asynchronous.
//
// An address on a device is an address at which nothing can ever be read or written; its bytes lie at a fixed
// distance. So the host cannot touch memory of a device by accident, and kernels and copies, which know the distance,
// need no change of protection. Addresses are not used twice: what is freed stays out of reach.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

namespace standin {

struct DeviceBlock {
  size_t bytes = 0;
  int device = 0;
  int descriptor = -1; // of the file that holds the bytes, where another process has them too
  bool opened = false; // it belongs to another process
};

struct PinnedRange {
  size_t bytes = 0;
  bool registered = false; // by cudaHostRegister
  unsigned flags = 0;
};

template <class Found>
using Ranges = std::map<uintptr_t, Found>;

// The range that `pointer` is in; end() if in none.
template <class Found>
typename Ranges<Found>::iterator range_of(Ranges<Found>& ranges, const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  auto next = ranges.upper_bound(address);
  if (next == ranges.begin()) {
    return ranges.end();
  }
  --next;
  return address < next->first + next->second.bytes ? next : ranges.end();
}

class Memory {
 public:
  Memory();

  // An address of fresh memory on a device; null where it has no room.
  void* allocate(int device, size_t bytes);
  // The block that begins at `pointer` is gone; false if there is none.
  bool release(void* pointer);
  size_t used(int device) const {
    return used_.at(device);
  }

  // Puts the bytes of a block into a file, if they are not in one, and returns its descriptor.
  int share(void* pointer);
  // The block of another process, from the file that holds its bytes.
  void* open_shared(int device, int descriptor, size_t bytes);

  // Where the bytes of an address are: elsewhere for one on a device, at the address itself for the host's.
  template <class T>
  T* bytes_of(T* pointer) const {
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    return on_device(address) ? reinterpret_cast<T*>(address + kDistance) : pointer;
  }
  static bool on_device(uintptr_t address) {
    return address >= kFirst && address < kFirst + kDistance;
  }

  Ranges<DeviceBlock> blocks;
  Ranges<PinnedRange> pinned;
  size_t pinned_bytes() const;

  static constexpr uintptr_t kDistance = uintptr_t{1} << 44; // 16 TiB of addresses
  static constexpr uintptr_t kFirst = uintptr_t{1} << 45; // clear of where Linux puts programs and libraries

 private:
  void* take_addresses(size_t bytes);
  uintptr_t next_ = kFirst;
  std::vector<size_t> used_;
};

Memory& memory();

} // namespace standin
