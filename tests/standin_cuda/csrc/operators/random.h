// Random numbers: drawn by the CPU, from what the generator of the device says when the operator is called.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <functional>

namespace standin::operators {

bool takes_generator(const c10::Argument& argument);

// Whether the operator draws numbers, from an argument or from the generator of the device.
bool is_random(const c10::OperatorHandle& op);

// What makes a generator of the CPU, each time a kernel runs, and moves the generator of the device on. Under capture
// each run of the graph draws other numbers, as PyTorch arranges it.
std::function<at::Generator()> draw(const std::optional<at::Generator>& generator, c10::DeviceIndex device);

// While it lasts, the default generator of the CPU draws the numbers of another; one thread at a time.
class AsDefaultGenerator {
 public:
  explicit AsDefaultGenerator(const at::Generator& generator);
  ~AsDefaultGenerator();

 private:
  at::Generator default_;
  at::Tensor state_;
};

} // namespace standin::operators
