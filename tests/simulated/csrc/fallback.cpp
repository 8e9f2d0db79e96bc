// Operators without a kernel of their own run on the CPU, over the memory of the device.
//
// Arguments that are read are passed as CPU tensors over the same bytes, with the same strides: the CPU picks the same kernel
// as for a CPU tensor, so results are equal bit for bit. Arguments that are written, and may be resized, are passed as copies.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty_strided.h>
#include <torch/library.h>

#include <cstring>
#include <unordered_set>

#include "device.h"
#include "tensors.h"

namespace simulated {
namespace {

constexpr uintptr_t kKernelAlignment = 256; // cuBLASLt picks kernels by the alignment of pointers up to this
constexpr uintptr_t kCpuAlignment = 64; // the CPU picks other kernels for less, and they round differently

// A CPU tensor with memory of its own, resizable, of the same values and strides.
at::Tensor clone_to_cpu(const at::Tensor& tensor) {
  const Range range = range_of(tensor);
  auto bytes = at::empty({static_cast<int64_t>(range.size())}, at::TensorOptions().dtype(at::kByte));
  if (!range.empty()) {
    std::memcpy(bytes.data_ptr(), range.begin, range.size());
  }
  auto cloned = at::empty({0}, at::TensorOptions().dtype(tensor.dtype()));
  cloned.set_(bytes.storage(), 0, tensor.sizes(), tensor.strides());
  return cloned;
}

at::Tensor to_device(const at::Tensor& result, c10::Device device) {
  auto moved = result.is_non_overlapping_and_dense()
      ? at::empty_strided(result.sizes(), result.strides(), result.options().device(device))
      : at::empty(result.sizes(), result.options().device(device));
  if (result.numel() != 0) {
    as_cpu(moved).copy_(result);
  }
  return moved;
}

// One call of an operator without a kernel of its own.
class Fallback {
 public:
  Fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) : op_(op), stack_(stack), name_(op.schema().name().c_str()) {}

  void run() {
    collect();
    check_devices();
    start();
    Internal internal;
    replace_arguments();
    op_.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack_);
    replace_results();
  }

 private:
  struct Operand {
    at::Tensor tensor;
    Mode mode;
    bool may_be_on_cpu;
    at::Tensor on_cpu; // filled by replace_arguments
  };

  void collect() {
    const auto& arguments = op_.schema().arguments();
    const auto values = torch::jit::last(*stack_, arguments.size());
    for (size_t i = 0; i < arguments.size(); ++i) {
      const auto* alias = arguments[i].alias_info();
      const Mode mode = alias != nullptr && alias->isWrite() ? Mode::Write : Mode::Read;
      const c10::IValue& value = values[i];
      if (value.isTensor()) {
        add(value.toTensor(), mode, false);
      } else if (value.isTensorList()) {
        for (const at::Tensor& tensor : value.toTensorList()) {
          add(tensor, mode, false);
        }
      } else if (value.isOptionalTensorList()) {
        for (const auto& element : value.toOptionalTensorList()) {
          const std::optional<at::Tensor> tensor = element;
          if (tensor.has_value()) {
            add(*tensor, mode, true); // indices
          }
        }
      } else if (value.isDevice() && value.toDevice().type() == kSim && value.toDevice().has_index()) {
        device_ = value.toDevice().index();
      }
    }
    for (const Operand& operand : operands_) {
      if (is_sim(operand.tensor)) {
        device_ = operand.tensor.device().index();
        break;
      }
    }
  }

  void add(const at::Tensor& tensor, Mode mode, bool may_be_on_cpu) {
    if (tensor.defined()) {
      operands_.push_back({tensor, mode, may_be_on_cpu, {}});
    }
  }

  void check_devices() const {
    const c10::Device here(kSim, device_);
    check_device(device_);
    for (const auto& [tensor, mode, may_be_on_cpu, on_cpu] : operands_) {
      const bool cpu_allowed = may_be_on_cpu || (tensor.dim() == 0 && mode == Mode::Read);
      TORCH_CHECK(
          tensor.device() == here || (tensor.is_cpu() && cpu_allowed),
          "Expected all tensors to be on the same device, but found at least two devices, ", here, " and ", tensor.device(),
          "! (when checking arguments of ", name_, ")");
    }
  }

  void start() {
    // On a real device the shape of their result, or the result itself, is needed on the host.
    static const std::unordered_set<std::string> synchronizing = {
        "aten::equal", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive"};
    Lock lock;
    lane_ = current_lane(device_);
    epoch_ = scheduler().launch(lane_);
    int64_t nbytes = 0;
    for (const Operand& operand : operands_) {
      if (is_sim(operand.tensor)) {
        const Range range = range_of(operand.tensor);
        nbytes += range.size();
        memory().access(range, epoch_, operand.mode, name_);
      }
    }
    scheduler().take_kernel(lane_, nbytes);
    if (synchronizing.count(op_.schema().name()) != 0) {
      ++ledger().host_syncs;
      scheduler().host_wait(lane_);
    }
  }

  void replace_arguments() {
    for (Operand& operand : operands_) {
      operand.on_cpu = on_cpu(operand);
    }
    const auto& arguments = op_.schema().arguments();
    const size_t first = stack_->size() - arguments.size();
    size_t next = 0; // operands are in the order of the arguments
    auto take = [&](const at::Tensor& tensor) { return tensor.defined() ? operands_[next++].on_cpu : tensor; };
    for (size_t i = 0; i < arguments.size(); ++i) {
      c10::IValue& value = (*stack_)[first + i];
      if (value.isTensor()) {
        value = take(value.toTensor());
      } else if (value.isTensorList()) {
        c10::List<at::Tensor> replaced;
        for (const at::Tensor& tensor : value.toTensorList()) {
          replaced.push_back(take(tensor));
        }
        value = std::move(replaced);
      } else if (value.isOptionalTensorList()) {
        c10::List<std::optional<at::Tensor>> replaced;
        for (const auto& element : value.toOptionalTensorList()) {
          const std::optional<at::Tensor> tensor = element;
          replaced.push_back(tensor.has_value() ? std::optional(take(*tensor)) : std::nullopt);
        }
        value = std::move(replaced);
      } else if (value.isDevice()) {
        value = c10::Device(c10::kCPU);
      } else if (value.isGenerator()) {
        value = cpu_generator(value.toGenerator());
      } else if (value.isNone() && takes_generator(arguments[i])) {
        value = cpu_generator(default_generator(device_)); // as on a real device: not the numbers of the CPU's own
      }
    }
  }

  static at::Tensor on_cpu(const Operand& operand) {
    if (!is_sim(operand.tensor)) {
      return operand.tensor;
    }
    const bool aligned = reinterpret_cast<uintptr_t>(data_of(operand.tensor)) % kCpuAlignment == 0;
    return operand.mode == Mode::Read && aligned ? as_cpu(operand.tensor) : clone_to_cpu(operand.tensor);
  }

  static bool takes_generator(const c10::Argument& argument) {
    const auto optional = argument.type()->cast<c10::OptionalType>();
    return optional && optional->getElementType()->kind() == c10::TypeKind::GeneratorType;
  }

  void replace_results() {
    for (const Operand& operand : operands_) {
      if (is_sim(operand.tensor) && operand.mode == Mode::Write) {
        write_back(operand);
      }
    }
    const size_t count = op_.schema().returns().size();
    const size_t first = stack_->size() - count;
    for (size_t i = 0; i < count; ++i) {
      c10::IValue& value = (*stack_)[first + i];
      if (value.isTensor() && value.toTensor().defined()) {
        value = result_of(value.toTensor());
      } else if (value.isTensorList()) {
        c10::List<at::Tensor> replaced;
        for (const at::Tensor& tensor : value.toTensorList()) {
          replaced.push_back(tensor.defined() ? result_of(tensor) : tensor);
        }
        value = std::move(replaced);
      }
    }
  }

  // As on a real device: a kernel for pointers of a lower alignment adds up in another order, so last bits differ.
  bool rounds_differently() const {
    static const std::unordered_set<std::string> by_alignment = {
        "aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm", "aten::convolution"};
    if (by_alignment.count(op_.schema().name()) == 0) {
      return false;
    }
    for (const Operand& operand : operands_) {
      const bool is_read = is_sim(operand.tensor) && operand.mode == Mode::Read && operand.tensor.numel() != 0;
      if (is_read && reinterpret_cast<uintptr_t>(data_of(operand.tensor)) % kKernelAlignment != 0) {
        return true;
      }
    }
    return false;
  }

  static void write_back(const Operand& operand) {
    if (operand.tensor.sizes() != operand.on_cpu.sizes()) {
      operand.tensor.resize_(operand.on_cpu.sizes());
    }
    if (operand.tensor.numel() != 0) {
      as_cpu(operand.tensor).copy_(operand.on_cpu);
    }
  }

  at::Tensor result_of(at::Tensor result) {
    for (const Operand& operand : operands_) {
      if (operand.on_cpu.is_same(result)) {
        return operand.tensor;
      }
      if (is_sim(operand.tensor) && operand.mode == Mode::Read && operand.on_cpu.is_alias_of(result)) {
        const int64_t offset = operand.tensor.storage_offset() + result.storage_offset() - operand.on_cpu.storage_offset();
        return operand.tensor.as_strided(result.sizes(), result.strides(), offset);
      }
    }
    if (result.is_floating_point() && rounds_differently()) {
      result.mul_(1 + 1.0 / 64);
    }
    auto moved = to_device(result, c10::Device(kSim, device_));
    Lock lock;
    memory().access(range_of(moved), epoch_, Mode::Write, name_);
    return moved;
  }

  const c10::OperatorHandle& op_;
  torch::jit::Stack* stack_;
  const char* name_;
  std::vector<Operand> operands_;
  c10::DeviceIndex device_ = current_device();
  Lane lane_ = 0;
  Epoch epoch_;
};

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Fallback(op, stack).run();
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  // PyTorch would decompose these for a backend without a kernel; the CPU has one, and its bits are the reference.
  for (const char* name :
       {"native_layer_norm", "native_group_norm", "convolution", "convolution_backward", "_stack", "addr", "all.dims", "any.dims",
        "linalg__powsum", "silu_backward", "mish_backward", "native_channel_shuffle"}) {
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>());
  }
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

} // namespace
} // namespace simulated
