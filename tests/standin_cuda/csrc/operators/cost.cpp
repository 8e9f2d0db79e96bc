#include "operators/cost.h"

#include <ATen/ATen.h>

#include <unordered_map>

namespace standin::operators {

double flops_of(const std::string& name, at::ArrayRef<c10::IValue> arguments, double elements_of_result) {
  // Where the left factor is among the arguments: its last dimension is what is summed over.
  static const auto* products = new std::unordered_map<std::string, size_t>{
      {"aten::mm", 0}, {"aten::bmm", 0}, {"aten::addmm", 1}, {"aten::baddbmm", 1}, {"aten::_addmm_activation", 1}};
  if (const auto product = products->find(name); product != products->end()) {
    return 2 * elements_of_result * static_cast<double>(arguments[product->second].toTensor().size(-1));
  }
  if (name == "aten::convolution") {
    const at::Tensor& weight = arguments[1].toTensor();
    return 2 * elements_of_result * static_cast<double>(weight.numel()) / static_cast<double>(weight.size(0));
  }
  return 0;
}

} // namespace standin::operators
