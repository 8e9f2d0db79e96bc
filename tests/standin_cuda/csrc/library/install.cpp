// Puts the stand-ins of operators in the place of PyTorch's kernels for CUDA.
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/Exception.h>

#include <string>
#include <unordered_set>

#include "api/launch.h"
#include "library/library.h"
#include "operators/boxed.h"
#include "kernels/kernels.h"

namespace standin::library {
namespace {

// PyTorch's own: they allocate, look at a tensor in another way, or ask the runtime for all they need.
const std::unordered_set<std::string>& kept() {
  static const auto* names = new std::unordered_set<std::string>{
      "empty.memory_format",
      "empty_strided",
      "resize_",
      "set_",
      "set_.source_Storage",
      "set_.source_Storage_storage_offset",
      "set_.source_Tensor",
      "is_set_to",
      "as_strided",
      "_reshape_alias",
      "view",
      "view.dtype",
      "view_as_real",
      "view_as_complex",
      "unfold",
      "alias",
      "detach",
      "record_stream",
      "_pin_memory",
      "is_pinned",
      "_local_scalar_dense",
      "_has_same_storage_numel",
      "_has_compatible_shallow_copy_type",
      "_fused_sdp_choice"};
  return *names;
}

// Without a kernel for CUDA, but of those that PyTorch would hand to cuDNN, or decompose in another way than for the
// CPU: the bits of the CPU are the reference.
constexpr const char* kWhole[] = {
    "convolution",
    "convolution_backward",
    "native_layer_norm",
    "native_layer_norm_backward",
    "native_group_norm",
    "native_group_norm_backward",
    "_stack",
    "addr",
    "silu_backward",
    "mish_backward",
    "native_channel_shuffle"};

[[noreturn]] void missing(const c10::OperatorHandle& op, torch::jit::Stack*) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, "the stand-in for CUDA has no ", op.schema().name());
}

class QuietWarnings : public c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

// A library of operators, for as long as the process lasts.
torch::Library& opened(c10::DispatchKey key) {
  return *new torch::Library(torch::Library::IMPL, "aten", key, __FILE__, __LINE__);
}

long install() {
  QuietWarnings quiet; // that kernels are replaced is the point
  const c10::WarningUtils::WarningHandlerGuard guard(&quiet);
  operators::remember_modes();
  auto& dispatcher = c10::Dispatcher::singleton();
  torch::Library& library = opened(c10::DispatchKey::CUDA);
  long replaced = 0;
  for (const auto& name : dispatcher.getAllOpNames()) {
    const auto op = dispatcher.findSchema(name);
    if (name.name.rfind("aten::", 0) != 0 || !op.has_value() || !op->hasKernelForDispatchKey(c10::DispatchKey::CUDA)) {
      continue;
    }
    const std::string full = name.name.substr(6) + (name.overload_name.empty() ? "" : "." + name.overload_name);
    if (kept().count(full) != 0) {
      continue;
    }
    library.impl(
        full.c_str(), op->hasComputedKernelForDispatchKey(c10::DispatchKey::CPU)
                          ? torch::CppFunction::makeFromBoxedFunction<&operators::run_boxed>()
                          : torch::CppFunction::makeFromBoxedFunction<&missing>());
    ++replaced;
  }
  for (const char* name : kWhole) {
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&operators::run_boxed>());
  }
  add_copies(library);
  add_attention(library);
  add_normalization(library);
  add_recurrent_cells(library);
  add_recurrent_layers(library);
  add_recurrent_calls(library);
  add_recurrent_calls(opened(c10::DispatchKey::AutogradCUDA));
  return replaced;
}

} // namespace
} // namespace standin::library

// Returns how many operators have been replaced.
STANDIN_EXPORT long standin_install() {
  static const long replaced = standin::library::install();
  return replaced;
}
