// What an operator costs on the clock.
#pragma once

#include <ATen/core/ivalue.h>

#include <string>

namespace standin::operators {

// Multiplications and additions of products of matrices and convolutions; 0 for other operators.
double flops_of(const std::string& name, at::ArrayRef<c10::IValue> arguments, double elements_of_result);

} // namespace standin::operators
