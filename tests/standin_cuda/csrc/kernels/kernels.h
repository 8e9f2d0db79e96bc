// Kernels of the stand-in: functions on the CPU that run when the stream of the caller comes to them.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <functional>
#include <memory>
#include <vector>

namespace standin::operators {

using Tensors = std::vector<at::Tensor>;

// Calls within reach the kernels of the backends themselves, whatever modes the caller is in.
struct BelowModes {
  c10::impl::ExcludeDispatchKeyGuard guard{
      c10::autograd_dispatch_keyset_with_ADInplaceOrView |
      c10::DispatchKeySet(
          {c10::DispatchKey::AutocastCUDA, c10::DispatchKey::AutocastCPU, c10::DispatchKey::Python,
           c10::DispatchKey::PythonTLSSnapshot})};
};

// Notes the modes of a thread that is in none; kernels run in them.
void remember_modes();

// Calls within are differentiated, whatever modes the caller is in.
class Differentiating {
 public:
  Differentiating();
  ~Differentiating();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

struct Cost {
  double bytes = 0;
  double flops = 0;
};

// Gives the current stream of `device` a kernel. An error that an earlier call of the runtime left behind is raised
// here, as PyTorch raises it behind each launch.
void launch(const std::string& name, c10::DeviceIndex device, Cost cost, std::function<void()> body);

// The same, with CPU tensors over the bytes of what it reads and writes; tensors that are undefined stay so.
void launch(
    const std::string& name,
    const Tensors& reads,
    const Tensors& writes,
    std::function<void(const Tensors& reads, const Tensors& writes)> body,
    double flops = 0);

// The host waits for the current stream of `device`, to run a kernel itself.
void wait_to_run(const std::string& name, c10::DeviceIndex device);

} // namespace standin::operators
