// The device as PyTorch sees it: device guard, hooks and generators.
#pragma once

#include <ATen/core/Generator.h>

#include "ledger.h"

namespace simulated {

// The CPU generator under a generator of the device; a generator of the CPU is returned as it is.
at::Generator cpu_generator(const at::Generator& generator);
const at::Generator& default_generator(c10::DeviceIndex device);

// Tells PyTorch about hooks and allocator. To be called once, after the backend was renamed.
void register_device();

} // namespace simulated
