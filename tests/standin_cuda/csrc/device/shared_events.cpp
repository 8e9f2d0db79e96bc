#include "device/shared_events.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>

namespace standin {

struct Page {
  std::atomic<uint64_t> recorded;
  std::atomic<uint64_t> happened;
};

struct SharedEvent {
  int descriptor;
  Page* page;
};

SharedEvent* open_shared_event(int descriptor) {
  void* page = mmap(nullptr, sizeof(Page), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  return page == MAP_FAILED ? nullptr : new SharedEvent{descriptor, static_cast<Page*>(page)};
}

void close_shared_event(SharedEvent* event) {
  munmap(event->page, sizeof(Page));
  close(event->descriptor);
  delete event;
}

int share_event(Lock& lock, Event& event) {
  if (event.shared == nullptr) {
    const int descriptor = memfd_create("standin_cuda_event", MFD_CLOEXEC);
    if (descriptor < 0 || ftruncate(descriptor, sizeof(Page)) != 0) {
      std::perror("stand-in CUDA: an event cannot be shared");
      std::abort();
    }
    event.shared = open_shared_event(descriptor);
  }
  if (event.fence != nullptr) {
    scheduler().finish(lock, event.fence);
  }
  return event.shared->descriptor;
}

void record_shared(Lock& lock, Event& event, Stream& stream) {
  const uint64_t number = ++event.shared->page->recorded;
  event.fence = scheduler().record(lock, stream);
  scheduler().finish(lock, event.fence);
  event.shared->page->happened = number;
}

bool has_happened(const SharedEvent& event) {
  return event.page->happened >= event.page->recorded;
}

} // namespace standin
