#include "operators/call.h"

#include "kernels/kernels.h"
#include "operators/random.h"

namespace standin::operators {
namespace {

// In the place of a tensor among the arguments.
at::Tensor placeholder() {
  static const auto* made = new at::Tensor(at::empty({0}));
  return *made;
}

} // namespace

Call::Call(const c10::OperatorHandle& op, at::ArrayRef<c10::IValue> arguments, const std::vector<Operand>& operands)
    : op_(op), arguments_(arguments.vec()) {
  for (const Operand& operand : operands) {
    const bool device = is_on_device(operand.tensor);
    places_.push_back({
        device ? std::optional(DeviceView(operand.tensor)) : std::nullopt,
        device ? at::Tensor() : copied(operand.tensor),
        operand.written,
    });
  }
  replace_tensors(arguments_, arguments_.data(), [](const at::Tensor& tensor) {
    return tensor.defined() ? placeholder() : tensor;
  });
}

bool Call::Place::direct(const at::Tensor& tensor) const {
  return view->aligned() || (written && !tensor.is_non_overlapping_and_dense());
}

at::Tensor Call::Place::on_cpu() const {
  if (!view.has_value()) {
    return host;
  }
  auto tensor = view->over_bytes();
  return direct(tensor) ? tensor : copied(tensor);
}

void Call::Place::write_back(const at::Tensor& operand) const {
  if (!view.has_value() || !written) {
    return;
  }
  auto tensor = view->over_bytes();
  if (!direct(tensor)) {
    tensor.copy_(operand);
  }
}

void Call::operator()() const {
  Tensors operands;
  for (const Place& place : places_) {
    operands.push_back(place.on_cpu());
  }
  torch::jit::Stack stack(arguments_.size());
  size_t next = 0;
  replace_tensors(arguments_, stack.data(), [&](const at::Tensor& tensor) {
    return tensor.defined() ? operands[next++] : tensor;
  });
  run(stack);
  for (size_t i = 0; i < places_.size(); ++i) {
    places_[i].write_back(operands[i]);
  }
  write_results(stack);
}

void Call::run(torch::jit::Stack& stack) const {
  const at::Generator generator = generator_ ? generator_() : at::Generator();
  bool passed = false;
  const auto& arguments = op_.schema().arguments();
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (stack[i].isDevice()) {
      stack[i] = c10::Device(c10::kCPU);
    } else if (generator.defined() && takes_generator(arguments[i])) {
      stack[i] = generator;
      passed = true;
    }
  }
  std::optional<AsDefaultGenerator> as_default;
  if (generator.defined() && !passed) {
    as_default.emplace(generator);
  }
  op_.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack);
}

void Call::write_results(const torch::jit::Stack& stack) const {
  size_t next = 0;
  auto write = [&](const at::Tensor& result) {
    const auto& into = results_.at(next++);
    if (into.has_value() && result.defined()) {
      auto tensor = into->over_bytes();
      TORCH_CHECK(
          tensor.sizes() == result.sizes(), "the meta kernel says ", tensor.sizes(), " and the CPU ", result.sizes());
      tensor.copy_(result);
    }
  };
  for (const c10::IValue& value : stack) {
    if (value.isTensor()) {
      write(value.toTensor());
    } else if (value.isTensorList()) {
      for (const at::Tensor& result : value.toTensorList()) {
        write(result);
      }
    }
  }
}

} // namespace standin::operators
