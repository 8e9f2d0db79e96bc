// Any operator that has a kernel for CUDA, run by the CPU's kernel over the bytes of the device.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

namespace standin::operators {

// Runs late, on results whose shapes the operator's meta kernel tells; where only the result tells its shape (nonzero,
// say), or goes to the host, the host waits, as it does on a device.
void run_boxed(const c10::OperatorHandle& op, torch::jit::Stack* stack);

} // namespace standin::operators
