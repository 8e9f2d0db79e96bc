// Copies. PyTorch's own code decides which are copies of bytes, and asks the runtime for them; the others are kernels.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/copy_native.h>

#include "library/library.h"
#include "operators/boxed.h"

namespace standin::library {
namespace {

// As PyTorch judges it: the bytes of both are in the same order.
bool same_bytes(const at::Tensor& self, const at::Tensor& source) {
  if (self.dtype() != source.dtype() || self.is_conj() != source.is_conj() || self.is_neg() != source.is_neg()) {
    return false;
  }
  const bool same_order = self.strides() == source.strides() && self.is_non_overlapping_and_dense();
  return self.sizes() == source.sizes() && (same_order || (self.is_contiguous() && source.is_contiguous()));
}

at::Tensor& copy_(at::Tensor& self, const at::Tensor& source, bool non_blocking) {
  if (self.device() != source.device() || same_bytes(self, source)) {
    return at::native::copy_(self, source, non_blocking);
  }
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::copy_", "");
  torch::jit::Stack stack{self, source, non_blocking};
  operators::run_boxed(op, &stack);
  return self;
}

void foreach_copy_(at::TensorList self, at::TensorList source, bool non_blocking) {
  TORCH_CHECK(
      self.size() == source.size(), "Tensor lists must have the same number of tensors, got ", self.size(), " and ",
      source.size());
  for (size_t i = 0; i < self.size(); ++i) {
    self[i].copy_(source[i], non_blocking);
  }
}

} // namespace

void add_copies(torch::Library& library) {
  library.impl("copy_", copy_);
  library.impl("_foreach_copy_", foreach_copy_);
}

} // namespace standin::library
