#include "device/memory.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/settings.h"

namespace standin {
namespace {

constexpr size_t kPage = 2 << 20; // allocations of CUDA are of pages of 2 MiB
constexpr int kReserve = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

size_t rounded(size_t bytes) {
  return (bytes + kPage - 1) / kPage * kPage;
}

void* backing(void* pointer) {
  return static_cast<char*>(pointer) + Memory::kDistance;
}

struct sigaction earlier;

void on_fault(int number, siginfo_t* info, void*) {
  if (Memory::on_device(reinterpret_cast<uintptr_t>(info->si_addr))) {
    char line[160];
    const int length = std::snprintf(
        line, sizeof line, "stand-in CUDA: the host touched memory of a device, at %p, outside a copy\n",
        info->si_addr);
    (void)!write(STDERR_FILENO, line, length);
  }
  sigaction(number, &earlier, nullptr); // which the same access meets when this returns
}

void reserve(uintptr_t first, const char* what) {
  void* wanted = reinterpret_cast<void*>(first);
  if (mmap(wanted, Memory::kDistance, PROT_NONE, kReserve | MAP_FIXED_NOREPLACE, -1, 0) != wanted) {
    std::fprintf(stderr, "stand-in CUDA: %s cannot be reserved\n", what);
    std::abort();
  }
}

} // namespace

Memory::Memory() : used_(settings().devices, 0) {
  reserve(kFirst, "addresses of devices");
  reserve(kFirst + kDistance, "addresses of their bytes");
  struct sigaction action{};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, &earlier);
}

void* Memory::take_addresses(size_t bytes) {
  if (next_ + rounded(bytes) + kPage >= kFirst + kDistance) {
    std::fprintf(stderr, "stand-in CUDA: all addresses of devices have been used\n");
    std::abort();
  }
  void* taken = reinterpret_cast<void*>(next_);
  next_ += rounded(bytes) + kPage; // a gap, so that what runs over the end of a block meets nothing
  return taken;
}

void* Memory::allocate(int device, size_t bytes) {
  if (used_.at(device) + rounded(bytes) > static_cast<size_t>(settings().bytes)) {
    return nullptr;
  }
  void* pointer = take_addresses(bytes);
  void* at = backing(pointer);
  if (mmap(at, rounded(bytes), PROT_READ | PROT_WRITE, kReserve | MAP_FIXED, -1, 0) != at) {
    return nullptr;
  }
  if (bytes <= static_cast<size_t>(settings().poison_bytes)) {
    std::memset(at, 0xFF, bytes);
  }
  blocks[reinterpret_cast<uintptr_t>(pointer)] = {bytes, device};
  used_[device] += rounded(bytes);
  return pointer;
}

bool Memory::release(void* pointer) {
  const auto found = blocks.find(reinterpret_cast<uintptr_t>(pointer));
  if (found == blocks.end()) {
    return false;
  }
  const DeviceBlock& block = found->second;
  mmap(backing(pointer), rounded(block.bytes), PROT_NONE, kReserve | MAP_FIXED, -1, 0);
  if (block.descriptor >= 0) {
    close(block.descriptor);
  }
  if (!block.opened) {
    used_[block.device] -= rounded(block.bytes);
  }
  blocks.erase(found);
  return true;
}

int Memory::share(void* pointer) {
  DeviceBlock& block = blocks.at(reinterpret_cast<uintptr_t>(pointer));
  if (block.descriptor < 0) {
    const int descriptor = memfd_create("standin_cuda", MFD_CLOEXEC);
    const size_t size = rounded(block.bytes);
    if (descriptor < 0 || ftruncate(descriptor, size) != 0 ||
        pwrite(descriptor, backing(pointer), block.bytes, 0) != static_cast<ssize_t>(block.bytes) ||
        mmap(backing(pointer), size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, descriptor, 0) == MAP_FAILED) {
      std::perror("stand-in CUDA: memory cannot be shared");
      std::abort();
    }
    block.descriptor = descriptor;
  }
  return block.descriptor;
}

void* Memory::open_shared(int device, int descriptor, size_t bytes) {
  void* pointer = take_addresses(bytes);
  if (mmap(backing(pointer), rounded(bytes), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, descriptor, 0) ==
      MAP_FAILED) {
    return nullptr;
  }
  blocks[reinterpret_cast<uintptr_t>(pointer)] = {bytes, device, descriptor, true};
  return pointer;
}

size_t Memory::pinned_bytes() const {
  size_t sum = 0;
  for (const auto& [address, range] : pinned) {
    sum += range.bytes;
  }
  return sum;
}

Memory& memory() {
  static auto* made = new Memory;
  return *made;
}

} // namespace standin
