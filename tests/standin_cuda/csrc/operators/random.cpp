#include "operators/random.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/cuda/CUDAGeneratorImpl.h>

#include <mutex>

#include "api/launch.h"

namespace standin::operators {
namespace {

std::mutex default_generator_mutex;

uint64_t mixed(uint64_t seed, uint64_t offset) {
  return offset == 0 ? seed : (seed ^ (offset * 0x9E3779B97F4A7C15ull)) * 0xBF58476D1CE4E5B9ull;
}

int64_t value_at(const int64_t* pointer) {
  return *static_cast<const int64_t*>(standin_bytes(pointer));
}

} // namespace

bool takes_generator(const c10::Argument& argument) {
  const auto optional = argument.type()->cast<c10::OptionalType>();
  return optional && optional->getElementType()->kind() == c10::TypeKind::GeneratorType;
}

bool is_random(const c10::OperatorHandle& op) {
  const auto& arguments = op.schema().arguments();
  return op.hasTag(at::Tag::nondeterministic_seeded) ||
         std::any_of(arguments.begin(), arguments.end(), takes_generator);
}

std::function<at::Generator()> draw(const std::optional<at::Generator>& generator, c10::DeviceIndex device) {
  constexpr uint64_t kStep = 4; // what the offset of the device's generator is a multiple of
  auto* source = at::get_generator_or_default<at::CUDAGeneratorImpl>(
      generator, at::cuda::detail::getDefaultCUDAGenerator(device));
  const std::lock_guard<std::mutex> lock(source->mutex_);
  const at::PhiloxCudaState state = source->philox_cuda_state(kStep);
  return [state] {
    const uint64_t seed = state.captured_ ? value_at(state.seed_.ptr) : state.seed_.val;
    const uint64_t offset =
        state.captured_ ? value_at(state.offset_.ptr) + state.offset_intragraph_ : state.offset_.val;
    return at::detail::createCPUGenerator(mixed(seed, offset));
  };
}

AsDefaultGenerator::AsDefaultGenerator(const at::Generator& generator)
    : default_(at::detail::getDefaultCPUGenerator()) {
  default_generator_mutex.lock();
  const std::lock_guard<std::mutex> lock(default_.mutex());
  state_ = default_.get_state();
  default_.set_state(generator.get_state());
}

AsDefaultGenerator::~AsDefaultGenerator() {
  {
    const std::lock_guard<std::mutex> lock(default_.mutex());
    default_.set_state(state_);
  }
  default_generator_mutex.unlock();
}

} // namespace standin::operators
