// A kernel of an operator, as it waits in a stream.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <functional>
#include <optional>
#include <vector>

#include "kernels/device_tensors.h"

namespace standin::operators {

// A tensor among the arguments of an operator.
struct Operand {
  at::Tensor tensor;
  bool written;
  bool may_be_on_cpu;
};

// Calls `replace` for each tensor among values, in order, and puts what it returns in its place. Some are undefined.
template <class Replace>
void replace_tensors(at::ArrayRef<c10::IValue> from, c10::IValue* into, Replace replace) {
  for (size_t i = 0; i < from.size(); ++i) {
    const c10::IValue& value = from[i];
    if (value.isTensor()) {
      into[i] = replace(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> replaced;
      for (const at::Tensor& tensor : value.toTensorList()) {
        replaced.push_back(replace(tensor));
      }
      into[i] = std::move(replaced);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> replaced;
      for (const auto& element : value.toOptionalTensorList()) {
        const std::optional<at::Tensor> tensor = element;
        replaced.push_back(tensor.has_value() ? std::optional(replace(*tensor)) : std::nullopt);
      }
      into[i] = std::move(replaced);
    } else {
      into[i] = value;
    }
  }
}

// It may run later, and again and again in a graph: so it has the operator, and its arguments without owners.
class Call {
 public:
  Call(const c10::OperatorHandle& op, at::ArrayRef<c10::IValue> arguments, const std::vector<Operand>& operands);

  void draw_from(std::function<at::Generator()> generator) {
    generator_ = std::move(generator);
  }

  // Of each returned tensor, in order; none where it is one of the arguments.
  void write_results_to(std::vector<std::optional<DeviceView>> results) {
    results_ = std::move(results);
  }

  void operator()() const;

 private:
  // Where an argument is when the kernel runs.
  struct Place {
    std::optional<DeviceView> view;
    at::Tensor host; // of an argument that is on the CPU, as it was when the operator was called
    bool written;

    bool direct(const at::Tensor& tensor) const;
    at::Tensor on_cpu() const;
    void write_back(const at::Tensor& operand) const;
  };

  void run(torch::jit::Stack& stack) const;
  void write_results(const torch::jit::Stack& stack) const;

  const c10::OperatorHandle op_;
  std::vector<c10::IValue> arguments_;
  std::vector<Place> places_;
  std::function<at::Generator()> generator_;
  std::vector<std::optional<DeviceView>> results_;
};

} // namespace standin::operators
