// Tensors of a device, as kernels see them: addresses and shapes, and nothing that keeps memory alive.
#pragma once

#include <ATen/ATen.h>

#include <vector>

namespace standin::operators {

inline bool is_on_device(const at::Tensor& tensor) {
  return tensor.defined() && tensor.is_cuda();
}

// What a kernel that runs later knows of a tensor. The memory may be another's by then, as on a device.
class DeviceView {
 public:
  explicit DeviceView(const at::Tensor& tensor);

  // A CPU tensor over the same bytes.
  at::Tensor over_bytes() const;

  // Whether the CPU takes the kernels for these bytes that it takes for its own tensors; others round differently.
  bool aligned() const;

 private:
  void* storage_;
  size_t storage_bytes_;
  int64_t offset_;
  c10::SmallVector<int64_t, 5> sizes_;
  c10::SmallVector<int64_t, 5> strides_;
  caffe2::TypeMeta dtype_;
  bool conjugate_;
  bool negative_;
};

// A CPU tensor over the bytes of a tensor on a device. Right while nothing queued writes to it.
at::Tensor over_bytes(const at::Tensor& tensor);

// A copy of a CPU tensor in memory of its own, with the same strides, whatever the caller's modes are.
at::Tensor copied(const at::Tensor& tensor);

// Bytes between the first element of a tensor and its last.
double extent(const at::Tensor& tensor);

} // namespace standin::operators
