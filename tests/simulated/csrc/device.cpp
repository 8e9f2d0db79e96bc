#include "device.h"

#include <cstring>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "memory.h"
#include "scheduler.h"

namespace simulated {
namespace {

c10::DeviceIndex index_or_current(c10::DeviceIndex device) {
  return device < 0 ? current_device() : device;
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override {
    return kSim;
  }
  c10::DeviceIndex deviceCount() const noexcept override {
    return kDevices;
  }
  c10::Device getDevice() const override {
    return c10::Device(kSim, current_device());
  }
  void setDevice(c10::Device device) const override {
    check_device(index_or_current(device.index()));
    set_current_device(index_or_current(device.index()));
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.index() >= 0 && device.index() < kDevices) {
      set_current_device(device.index());
    }
  }
  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::Device previous = getDevice();
    setDevice(device);
    return previous;
  }

  c10::Stream getStream(c10::Device device) const override {
    const auto index = checked(device);
    return stream_of(current_lane(index), index);
  }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, c10::Device(kSim, checked(device)));
  }
  c10::Stream getNewStream(c10::Device device, int) const override {
    const auto index = checked(device);
    Lock lock;
    return stream_of(scheduler().new_lane(index), index);
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override {
    return getNewStream(device, 0);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    const c10::Stream previous = getStream(stream.device());
    set_current_lane(lane_of(stream), stream.device_index());
    return previous;
  }
  bool queryStream(const c10::Stream& stream) const override {
    Lock lock;
    return scheduler().host_poll(scheduler().record(lane_of(stream)));
  }
  void synchronizeStream(const c10::Stream& stream) const override {
    Lock lock;
    ++ledger().host_syncs;
    scheduler().host_wait(lane_of(stream));
  }
  void synchronizeDevice(const c10::DeviceIndex device) const override {
    const auto index = index_or_current(device);
    check_device(index);
    Lock lock;
    ++ledger().host_syncs;
    scheduler().host_wait_device(index);
  }

  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex, const c10::EventFlag) const override {
    Lock lock;
    if (*event == nullptr) {
      *event = new EventMark();
    }
    *static_cast<EventMark*>(*event) = scheduler().record(lane_of(stream));
  }
  void block(void* event, const c10::Stream& stream) const override {
    if (event != nullptr) {
      Lock lock;
      scheduler().wait(lane_of(stream), *static_cast<EventMark*>(event));
    }
  }
  bool queryEvent(void* event) const override {
    if (event == nullptr) {
      return true;
    }
    Lock lock;
    return scheduler().host_poll(*static_cast<EventMark*>(event));
  }
  void synchronizeEvent(void* event) const override {
    if (event != nullptr) {
      Lock lock;
      ++ledger().host_syncs;
      scheduler().host_wait(*static_cast<EventMark*>(event));
    }
  }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override {
    delete static_cast<EventMark*>(event);
  }
  // In milliseconds. That both are recorded, timed and complete is checked by PyTorch.
  double elapsedTime(void* from, void* to, const c10::DeviceIndex) const override {
    Lock lock;
    return (static_cast<EventMark*>(to)->seconds - static_cast<EventMark*>(from)->seconds) * 1e3;
  }

  void recordDataPtrOnStream(const c10::DataPtr& pointer, const c10::Stream& stream) const override {
    Lock lock;
    memory().record_stream(pointer.get(), lane_of(stream));
  }

 private:
  static c10::DeviceIndex checked(c10::Device device) {
    const auto index = index_or_current(device.index());
    check_device(index);
    return index;
  }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

// A generator whose numbers come from a CPU generator, so that a seed gives the same numbers on both devices.
struct SimGenerator final : c10::GeneratorImpl {
  SimGenerator(c10::DeviceIndex device, at::Generator cpu)
      : GeneratorImpl(c10::Device(kSim, device), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)), cpu_(std::move(cpu)) {}

  void set_current_seed(uint64_t seed) override {
    cpu_.set_current_seed(seed);
  }
  void set_offset(uint64_t offset) override {
    cpu_.set_offset(offset);
  }
  uint64_t get_offset() const override {
    return cpu_.get_offset();
  }
  uint64_t current_seed() const override {
    return cpu_.current_seed();
  }
  uint64_t seed() override {
    return cpu_.seed();
  }
  void set_state(const c10::TensorImpl& state) override {
    cpu_.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return cpu_.unsafeGetGeneratorImpl()->get_state();
  }
  SimGenerator* clone_impl() const override {
    return new SimGenerator(device().index(), cpu_.clone());
  }
  const at::Generator& cpu() const {
    return cpu_;
  }

 private:
  at::Generator cpu_;
};

at::Generator make_generator(c10::DeviceIndex device) {
  return at::make_generator<SimGenerator>(device, at::detail::createCPUGenerator());
}

} // namespace

const at::Generator& default_generator(c10::DeviceIndex device) {
  static auto* generators = new std::array<at::Generator, kDevices>([] {
    std::array<at::Generator, kDevices> made;
    for (c10::DeviceIndex index = 0; index < kDevices; ++index) {
      made[index] = make_generator(index);
    }
    return made;
  }());
  check_device(index_or_current(device));
  return (*generators)[index_or_current(device)];
}

at::Generator cpu_generator(const at::Generator& generator) {
  if (generator.device().type() != kSim) {
    return generator;
  }
  return static_cast<const SimGenerator*>(generator.unsafeGetGeneratorImpl())->cpu();
}

namespace {

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override {
    return true;
  }
  bool isAvailable() const override {
    return true;
  }
  bool hasPrimaryContext(c10::DeviceIndex) const override {
    return true;
  }
  c10::DeviceIndex deviceCount() const override {
    return kDevices;
  }
  c10::DeviceIndex getCurrentDevice() const override {
    return current_device();
  }
  void setCurrentDevice(c10::DeviceIndex device) const override {
    check_device(device);
    set_current_device(device);
  }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex device) const override {
    const auto previous = current_device();
    setCurrentDevice(device);
    return previous;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex device) const override {
    return device < 0 ? current_device() : exchangeDevice(device);
  }
  bool isPinnedPtr(const void* pointer) const override {
    Lock lock;
    return memory().is_pinned(pointer);
  }
  at::Allocator* getPinnedMemoryAllocator() const override {
    return &pinned_allocator();
  }
  c10::Device getDeviceFromPtr(void* pointer) const override {
    Lock lock;
    const Block* block = memory().find(pointer);
    return c10::Device(kSim, block != nullptr ? block->device : current_device());
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex device) const override {
    return default_generator(device);
  }
  at::Generator getNewGenerator(c10::DeviceIndex device) const override {
    check_device(index_or_current(device));
    return make_generator(index_or_current(device));
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t nbytes) const override {
    c10::DeviceGuard guard(storage.device());
    auto fresh = device_allocator().allocate(nbytes);
    const size_t kept = std::min(nbytes, storage.nbytes());
    if (kept != 0) {
      Lock lock;
      const char* from = static_cast<const char*>(storage.data());
      const char* to = static_cast<const char*>(fresh.get());
      const Lane lane = current_lane(storage.device().index());
      const Epoch launched = scheduler().launch(lane);
      scheduler().take_kernel(lane, 2 * kept);
      memory().access({from, from + kept}, launched, Mode::Read, "resize");
      memory().access({to, to + kept}, launched, Mode::Write, "resize");
      std::memcpy(fresh.get(), storage.data(), kept);
    }
    auto* resized = storage.unsafeGetStorageImpl();
    resized->set_data_ptr_noswap(std::move(fresh));
    resized->set_nbytes(nbytes);
  }
};

} // namespace

void register_device() {
  static auto* hooks = new Hooks();
  at::RegisterPrivateUse1HooksInterface(hooks);
  c10::SetAllocator(kSim, &device_allocator());
}

} // namespace simulated
