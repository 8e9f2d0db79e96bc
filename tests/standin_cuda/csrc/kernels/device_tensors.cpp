#include "kernels/device_tensors.h"

#include "api/launch.h"

namespace standin::operators {

namespace {

constexpr uintptr_t kCpuAlignment = 64;

} // namespace

DeviceView::DeviceView(const at::Tensor& tensor)
    : storage_(const_cast<void*>(tensor.storage().data())),
      storage_bytes_(tensor.storage().nbytes()),
      offset_(tensor.storage_offset()),
      sizes_(tensor.sizes()),
      strides_(tensor.strides()),
      dtype_(tensor.dtype()),
      conjugate_(tensor.is_conj()),
      negative_(tensor.is_neg()) {}

at::Tensor DeviceView::over_bytes() const {
  c10::DataPtr data(standin_bytes(storage_), c10::Device(c10::kCPU));
  c10::Storage storage(c10::Storage::use_byte_size_t(), storage_bytes_, std::move(data), nullptr, false);
  auto tensor =
      at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), dtype_);
  tensor.unsafeGetTensorImpl()->set_storage_offset(offset_);
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(sizes_, strides_);
  tensor._set_conj(conjugate_);
  tensor._set_neg(negative_);
  return tensor;
}

bool DeviceView::aligned() const {
  const auto begin = reinterpret_cast<uintptr_t>(storage_);
  return begin % kCpuAlignment == 0 && (begin + offset_ * dtype_.itemsize()) % kCpuAlignment == 0;
}

at::Tensor over_bytes(const at::Tensor& tensor) {
  return DeviceView(tensor).over_bytes();
}

at::Tensor copied(const at::Tensor& tensor) {
  auto copy = tensor.is_non_overlapping_and_dense()
                  ? at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options())
                  : at::empty(tensor.sizes(), tensor.options());
  copy.copy_(tensor);
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) {
    copy.unsafeGetTensorImpl()->set_wrapped_number(true);
  }
  return copy;
}

double extent(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.numel() == 0) {
    return 0;
  }
  int64_t last = 0;
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    last += (tensor.size(i) - 1) * tensor.stride(i);
  }
  return static_cast<double>((last + 1) * tensor.element_size());
}

} // namespace standin::operators
