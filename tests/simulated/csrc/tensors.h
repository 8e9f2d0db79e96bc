// Tensors of the device as the operators need them: their bytes, and a CPU tensor over the same memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include "memory.h"

namespace simulated {

// True on this thread while an operator runs on the CPU: copies inside it are ours, not the program's.
inline thread_local int operator_depth = 0;

// Calls into PyTorch made on our own behalf: no autograd, and no mode of the program (fake tensors, tracing) sees them.
struct Internal {
  Internal() {
    ++operator_depth;
  }
  ~Internal() {
    --operator_depth;
  }
  Internal(const Internal&) = delete;
  Internal& operator=(const Internal&) = delete;

 private:
  at::AutoDispatchBelowADInplaceOrView below_autograd_;
  c10::impl::ExcludeDispatchKeyGuard no_modes_{
      c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot, c10::DispatchKey::Functionalize})};
};

inline bool is_sim(const at::Tensor& tensor) {
  return tensor.defined() && tensor.is_privateuseone();
}

inline char* data_of(const at::Tensor& tensor) {
  auto* base = static_cast<char*>(const_cast<void*>(tensor.storage().data()));
  return base == nullptr ? nullptr : base + tensor.storage_offset() * tensor.element_size();
}

// From the first byte to the last; gaps between strides count as used.
inline Range range_of(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.has_storage() || tensor.numel() == 0) {
    return {};
  }
  int64_t last = 0;
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
    last += (tensor.size(dim) - 1) * tensor.stride(dim);
  }
  const char* begin = data_of(tensor);
  return {begin, begin + (last + 1) * tensor.element_size()};
}

// A CPU tensor over the same memory; it owns nothing.
inline at::Tensor as_cpu(const at::Tensor& tensor) {
  if (!is_sim(tensor)) {
    return tensor;
  }
  const auto options = at::TensorOptions().dtype(tensor.dtype());
  if (tensor.numel() == 0) {
    return at::empty(tensor.sizes(), options);
  }
  auto aliased = at::from_blob(data_of(tensor), tensor.sizes(), tensor.strides(), options);
  aliased._set_conj(tensor.is_conj());
  aliased._set_neg(tensor.is_neg());
  return aliased;
}

at::Tensor copy_from(const at::Tensor& source, const at::Tensor& destination, bool non_blocking);

} // namespace simulated
