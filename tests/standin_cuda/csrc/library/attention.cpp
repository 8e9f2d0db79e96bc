// Attention: what PyTorch gives to the kernels of flash attention, memory-efficient attention and cuDNN. All three are
// the CPU's flash attention here, so images are equal to the CPU's bit for bit where its own are.
#include <ATen/ATen.h>

#include <cmath>

#include "library/library.h"
#include "kernels/kernels.h"

namespace standin::library {
namespace {

using at::Tensor;
using operators::Tensors;

struct Attention {
  bool causal;
  std::optional<double> scale;
};

void refuse_dropout(double p) {
  TORCH_CHECK_NOT_IMPLEMENTED(p == 0, "the stand-in for CUDA has no dropout within attention");
}

// Heads of keys and values that several heads of queries share, once for each of those.
Tensor for_each_query_head(const Tensor& shared, const Tensor& query) {
  const int64_t times = query.size(1) / shared.size(1);
  return times == 1 ? shared : shared.repeat_interleave(times, 1);
}

Tensor sum_over_query_heads(const Tensor& gradient, const Tensor& shared) {
  const int64_t times = gradient.size(1) / shared.size(1);
  return times == 1 ? gradient : gradient.unflatten(1, {shared.size(1), times}).sum(2);
}

double scale_of(const Attention& attention, const Tensor& query) {
  return attention.scale.value_or(1 / std::sqrt(static_cast<double>(query.size(-1))));
}

// Logits of attention in single precision, at least.
Tensor logits(const Tensor& query, const Tensor& key, const Tensor& bias, const Attention& attention) {
  const auto type = at::promote_types(query.scalar_type(), at::kFloat);
  auto result = at::matmul(query.to(type), key.to(type).transpose(-1, -2)) * scale_of(attention, query);
  if (bias.defined()) {
    result = result + bias;
  }
  if (attention.causal) {
    const auto later = at::ones({query.size(2), key.size(2)}, at::kBool).triu(1);
    result = result.masked_fill(later, -INFINITY);
  }
  return result;
}

// The CPU's kernel wants values as wide as queries.
bool is_for_flash(const Tensor& query, const Tensor& value) {
  return query.size(-1) == value.size(-1);
}

std::tuple<Tensor, Tensor> forward(
    const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& bias, const Attention& attention) {
  const Tensor keys = for_each_query_head(key, query);
  const Tensor values = for_each_query_head(value, query);
  if (is_for_flash(query, value)) {
    const auto mask = bias.defined() ? std::optional(bias) : std::nullopt;
    return at::_scaled_dot_product_flash_attention_for_cpu(
        query, keys, values, 0, attention.causal, mask, attention.scale);
  }
  const Tensor scores = logits(query, keys, bias, attention);
  const Tensor sums = at::logsumexp(scores, {-1});
  const Tensor weights = at::exp(scores - sums.unsqueeze(-1));
  return {at::matmul(weights, values.to(weights.scalar_type())).to(query.scalar_type()), sums};
}

// Gradients of query, key, value and bias, the last only where `with_bias`.
Tensors backward(const Tensors& reads, const Attention& attention, bool with_bias) {
  const Tensor gradient = reads[0].contiguous();
  const Tensor &query = reads[1], &key = reads[2], &value = reads[3], &out = reads[4], &sums = reads[5],
               &bias = reads[6];
  const Tensor keys = for_each_query_head(key, query);
  const Tensor values = for_each_query_head(value, query);
  Tensors gradients(4);
  if (is_for_flash(query, value) && !with_bias) {
    const auto mask = bias.defined() ? std::optional(bias) : std::nullopt;
    std::tie(gradients[0], gradients[1], gradients[2]) = at::_scaled_dot_product_flash_attention_for_cpu_backward(
        gradient, query, keys, values, out, sums, 0, attention.causal, mask, attention.scale);
  } else {
    const Tensor weights = at::exp(logits(query, keys, bias, attention) - sums.unsqueeze(-1));
    const auto type = weights.scalar_type();
    const Tensor wide = gradient.to(type);
    const Tensor through = at::matmul(wide, values.to(type).transpose(-1, -2));
    const Tensor of_logits = weights * (through - (wide * out.to(type)).sum(-1, true));
    gradients[0] = at::matmul(of_logits, keys.to(type)) * scale_of(attention, query);
    gradients[1] = at::matmul(of_logits.transpose(-1, -2), query.to(type)) * scale_of(attention, query);
    gradients[2] = at::matmul(weights.transpose(-1, -2), wide);
    gradients[3] = with_bias ? of_logits : Tensor();
  }
  gradients[1] = sum_over_query_heads(gradients[1], key);
  gradients[2] = sum_over_query_heads(gradients[2], value);
  return gradients;
}

double flops(const Tensor& query, const Tensor& key, const Tensor& value) {
  const double pairs = static_cast<double>(query.size(0) * query.size(1) * query.size(2)) * key.size(2);
  return 2 * pairs * static_cast<double>(query.size(3) + value.size(3));
}

// Issues the forward pass. The output lies as the kernels of CUDA leave it: positions before heads.
std::pair<Tensor, Tensor> launch_forward(
    const char* name,
    const Tensor& query,
    const Tensor& key,
    const Tensor& value,
    const Tensor& bias,
    Attention attention) {
  auto out = at::empty({query.size(0), query.size(2), query.size(1), value.size(3)}, query.options()).transpose(1, 2);
  auto sums = at::empty({query.size(0), query.size(1), query.size(2)}, query.options().dtype(at::kFloat));
  operators::launch(
      name, {query, key, value, bias}, {out, sums},
      [attention](const Tensors& reads, const Tensors& writes) {
        const auto [result, logsumexp] = forward(reads[0], reads[1], reads[2], reads[3], attention);
        writes[0].copy_(result);
        writes[1].copy_(logsumexp);
      },
      flops(query, key, value));
  return {out, sums};
}

Tensors launch_backward(
    const char* name,
    const Tensor& gradient,
    const Tensor& query,
    const Tensor& key,
    const Tensor& value,
    const Tensor& out,
    const Tensor& sums,
    const Tensor& bias,
    Attention attention,
    bool with_bias) {
  Tensors gradients{
      at::empty_like(query), at::empty_like(key), at::empty_like(value),
      with_bias ? at::empty(bias.sizes(), bias.options()) : Tensor()};
  operators::launch(
      name, {gradient, query, key, value, out, sums, bias}, gradients,
      [attention, with_bias](const Tensors& reads, const Tensors& writes) {
        const Tensors found = backward(reads, attention, with_bias);
        for (size_t i = 0; i < found.size(); ++i) {
          if (writes[i].defined()) {
            writes[i].copy_(found[i]);
          }
        }
      },
      2.5 * flops(query, key, value));
  return gradients;
}

// Seeds and offsets of a dropout that there is not.
Tensor no_numbers() {
  return at::empty({2}, at::TensorOptions().dtype(at::kLong));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, c10::SymInt, c10::SymInt, Tensor, Tensor, Tensor> flash(
    const Tensor& query,
    const Tensor& key,
    const Tensor& value,
    double p,
    bool causal,
    bool,
    std::optional<double> scale) {
  refuse_dropout(p);
  auto [out, sums] =
      launch_forward("aten::_scaled_dot_product_flash_attention", query, key, value, {}, {causal, scale});
  return {out, sums, {}, {}, query.size(2), key.size(2), no_numbers(), no_numbers(), at::empty({0}, query.options())};
}

std::tuple<Tensor, Tensor, Tensor> flash_backward(
    const Tensor& gradient,
    const Tensor& query,
    const Tensor& key,
    const Tensor& value,
    const Tensor& out,
    const Tensor& sums,
    const Tensor&,
    const Tensor&,
    c10::SymInt,
    c10::SymInt,
    double p,
    bool causal,
    const Tensor&,
    const Tensor&,
    std::optional<double> scale) {
  refuse_dropout(p);
  const Tensors found = launch_backward(
      "aten::_scaled_dot_product_flash_attention_backward", gradient, query, key, value, out, sums, {},
      {causal, scale}, false);
  return {found[0], found[1], found[2]};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> efficient(
    const Tensor& query,
    const Tensor& key,
    const Tensor& value,
    const std::optional<Tensor>& bias,
    bool,
    double p,
    bool causal,
    std::optional<double> scale) {
  refuse_dropout(p);
  auto [out, sums] = launch_forward(
      "aten::_scaled_dot_product_efficient_attention", query, key, value, bias.value_or(Tensor()), {causal, scale});
  return {out, sums, no_numbers(), no_numbers()};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> efficient_backward(
    const Tensor& gradient,
    const Tensor& query,
    const Tensor& key,
    const Tensor& value,
    const Tensor& bias,
    const Tensor& out,
    const Tensor& sums,
    const Tensor&,
    const Tensor&,
    double p,
    std::array<bool, 4> wanted,
    bool causal,
    std::optional<double> scale) {
  refuse_dropout(p);
  const bool with_bias = bias.defined() && wanted[3];
  if (!gradient.defined()) {
    return {};
  }
  const Tensors found = launch_backward(
      "aten::_scaled_dot_product_efficient_attention_backward", gradient, query, key, value, out, sums, bias,
      {causal, scale}, with_bias);
  return {found[0], found[1], found[2], found[3]};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, c10::SymInt, c10::SymInt, Tensor, Tensor, Tensor> cudnn(
    const Tensor& query,
    const Tensor& key,
    const Tensor& value,
    const std::optional<Tensor>& bias,
    bool,
    double p,
    bool causal,
    bool,
    std::optional<double> scale) {
  refuse_dropout(p);
  auto [out, sums] = launch_forward(
      "aten::_scaled_dot_product_cudnn_attention", query, key, value, bias.value_or(Tensor()), {causal, scale});
  return {out, sums, {}, {}, query.size(2), key.size(2), no_numbers(), no_numbers(), {}};
}

std::tuple<Tensor, Tensor, Tensor> cudnn_backward(
    const Tensor& gradient,
    const Tensor& query,
    const Tensor& key,
    const Tensor& value,
    const Tensor& out,
    const Tensor& sums,
    const Tensor&,
    const Tensor&,
    const Tensor& bias,
    const Tensor&,
    const Tensor&,
    c10::SymInt,
    c10::SymInt,
    double p,
    bool causal,
    std::optional<double> scale) {
  refuse_dropout(p);
  const Tensors found = launch_backward(
      "aten::_scaled_dot_product_cudnn_attention_backward", gradient, query, key, value, out, sums, bias,
      {causal, scale}, false);
  return {found[0], found[1], found[2]};
}

} // namespace

void add_attention(torch::Library& library) {
  library.impl("_scaled_dot_product_flash_attention", flash);
  library.impl("_scaled_dot_product_flash_attention_backward", flash_backward);
  library.impl("_scaled_dot_product_efficient_attention", efficient);
  library.impl("_scaled_dot_product_efficient_attention_backward", efficient_backward);
  library.impl("_scaled_dot_product_cudnn_attention", cudnn);
  library.impl("_scaled_dot_product_cudnn_attention_backward", cudnn_backward);
}

} // namespace standin::library
