// Normalization whose backward pass has a kernel for CUDA alone.
#include <ATen/ATen.h>

#include <numeric>

#include "library/library.h"
#include "kernels/kernels.h"

namespace standin::library {
namespace {

using at::Tensor;
using operators::Tensors;

std::tuple<Tensor, Tensor> rms_norm_backward(
    const Tensor& gradient,
    const Tensor& input,
    at::IntArrayRef normalized,
    const Tensor& scales,
    const std::optional<Tensor>& weight,
    std::array<bool, 2> wanted) {
  const Tensor weights = weight.value_or(Tensor());
  auto of_input = wanted[0] ? at::empty_like(input) : Tensor();
  auto of_weight = wanted[1] && weights.defined() ? at::empty_like(weights) : Tensor();
  const auto count = static_cast<int64_t>(normalized.size());
  operators::launch(
      "aten::_fused_rms_norm_backward", {gradient, input, scales, weights}, {of_input, of_weight},
      [count](const Tensors& reads, const Tensors& writes) {
        std::vector<int64_t> inner(count);
        std::iota(inner.begin(), inner.end(), -count);
        std::vector<int64_t> outer(reads[1].dim() - count);
        std::iota(outer.begin(), outer.end(), 0);
        const auto type = reads[2].scalar_type(); // in which the forward pass has worked
        const Tensor along = reads[0].to(type);
        const Tensor unit = reads[1].to(type) * reads[2];
        const Tensor weighted = reads[3].defined() ? along * reads[3].to(type) : along;
        if (writes[0].defined()) {
          writes[0].copy_(reads[2] * (weighted - unit * (weighted * unit).mean(inner, true)));
        }
        if (writes[1].defined()) {
          const Tensor product = along * unit;
          writes[1].copy_(outer.empty() ? product : product.sum(outer));
        }
      });
  return {of_input, of_weight};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm(
    const Tensor& input,
    const Tensor& weight,
    const std::optional<Tensor>& bias,
    const std::optional<Tensor>& mean,
    const std::optional<Tensor>& variance,
    bool training,
    double momentum,
    double epsilon) {
  auto out = at::empty_like(input);
  const auto statistics = [&] { return at::empty({training ? input.size(1) : 0}, weight.options()); };
  auto saved_mean = statistics(), saved_scale = statistics();
  operators::launch(
      "aten::cudnn_batch_norm", {input, weight, bias.value_or(Tensor())},
      {out, saved_mean, saved_scale, mean.value_or(Tensor()), variance.value_or(Tensor())},
      [training, momentum, epsilon](const Tensors& reads, const Tensors& writes) {
        const auto [result, mean, scale] =
            at::native_batch_norm(reads[0], reads[1], reads[2], writes[3], writes[4], training, momentum, epsilon);
        writes[0].copy_(result);
        writes[1].copy_(mean);
        writes[2].copy_(scale);
      });
  return {out, saved_mean, saved_scale, at::empty({0}, input.options().dtype(at::kByte))};
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_backward(
    const Tensor& input,
    const Tensor& gradient,
    const Tensor& weight,
    const std::optional<Tensor>& mean,
    const std::optional<Tensor>& variance,
    const std::optional<Tensor>& saved_mean,
    const std::optional<Tensor>& saved_scale,
    double epsilon,
    const Tensor&) {
  auto of_input = at::empty_like(input), of_weight = at::empty_like(weight), of_bias = at::empty_like(weight);
  operators::launch(
      "aten::cudnn_batch_norm_backward",
      {gradient, input, weight, mean.value_or(Tensor()), variance.value_or(Tensor()), saved_mean.value_or(Tensor()),
       saved_scale.value_or(Tensor())},
      {of_input, of_weight, of_bias}, [epsilon](const Tensors& reads, const Tensors& writes) {
        const auto [input, weight, bias] = at::native_batch_norm_backward(
            reads[0], reads[1], reads[2], reads[3], reads[4], reads[5], reads[6], true, epsilon, {true, true, true});
        writes[0].copy_(input);
        writes[1].copy_(weight);
        writes[2].copy_(bias);
      });
  return {of_input, of_weight, of_bias};
}

} // namespace

void add_normalization(torch::Library& library) {
  library.impl("cudnn_batch_norm", batch_norm);
  library.impl("cudnn_batch_norm_backward", batch_norm_backward);
  library.impl("_fused_rms_norm_backward", rms_norm_backward);
}

} // namespace standin::library
