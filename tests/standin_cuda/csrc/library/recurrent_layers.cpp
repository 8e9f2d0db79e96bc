// Recurrent layers. PyTorch gives them to cuDNN, which it asks for descriptions of their weights first: so what is
// replaced are the layers as the program calls them, and the operators that their gradients go through.
#include <ATen/ATen.h>
#include <ATen/ops/gru_native.h>
#include <ATen/ops/lstm_native.h>
#include <ATen/ops/rnn_relu_native.h>
#include <ATen/ops/rnn_tanh_native.h>
#include <torch/csrc/autograd/autograd.h>

#include "library/library.h"
#include "kernels/device_tensors.h"
#include "kernels/kernels.h"

namespace standin::library {
namespace {

using at::Tensor;
using operators::Tensors;

// Numbers that cuDNN has for the kinds of layers.
enum Mode { kRelu = 0, kTanh = 1, kLstm = 2, kGru = 3 };

struct Layers {
  int64_t mode;
  int64_t weights_per_layer; // 4 with biases, 2 without; one more with a projection
  int64_t count;
  bool batch_first;
  bool train;
  bool bidirectional;
  std::vector<int64_t> batch_sizes; // of a packed sequence

  bool has_biases() const {
    return weights_per_layer >= 4;
  }
};

void refuse_dropout(double dropout, bool train) {
  TORCH_CHECK_NOT_IMPLEMENTED(dropout == 0 || !train, "the stand-in for CUDA has no dropout within recurrent layers");
}

// Output, last hidden state, last cell state.
std::tuple<Tensor, Tensor, Tensor> run(
    const Layers& layers, const Tensor& input, const Tensor& hidden, const Tensor& cell, at::TensorList weights) {
  const bool packed = !layers.batch_sizes.empty();
  const auto batches = packed ? at::tensor(layers.batch_sizes, at::kLong) : Tensor();
  const bool biases = layers.has_biases();
  if (layers.mode == kLstm) {
    const std::vector<Tensor> states{hidden, cell};
    return packed
               ? at::lstm(input, batches, states, weights, biases, layers.count, 0, false, layers.bidirectional)
               : at::lstm(
                     input, states, weights, biases, layers.count, 0, false, layers.bidirectional, layers.batch_first);
  }
  std::tuple<Tensor, Tensor> found;
  const auto call = [&](auto of_packed, auto of_dense) {
    found =
        packed ? of_packed(input, batches, hidden, weights, biases, layers.count, 0, false, layers.bidirectional)
               : of_dense(
                     input, hidden, weights, biases, layers.count, 0, false, layers.bidirectional, layers.batch_first);
  };
#define STANDIN_CALL(name)                                        \
  call(                                                           \
      [](auto&&... arguments) { return at::name(arguments...); }, \
      [](auto&&... arguments) { return at::name(arguments...); })
  switch (layers.mode) {
    case kGru: STANDIN_CALL(gru); break;
    case kTanh: STANDIN_CALL(rnn_tanh); break;
    default: STANDIN_CALL(rnn_relu);
  }
#undef STANDIN_CALL
  return {std::get<0>(found), std::get<1>(found), Tensor()};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& input,
    at::TensorList weights,
    int64_t stride,
    const std::optional<Tensor>& buffer,
    const Tensor& hidden,
    const std::optional<Tensor>& cell,
    int64_t mode,
    c10::SymInt hidden_size,
    c10::SymInt projection,
    int64_t count,
    bool batch_first,
    double dropout,
    bool train,
    bool bidirectional,
    c10::SymIntArrayRef batch_sizes,
    const std::optional<Tensor>&) {
  refuse_dropout(dropout, train);
  const Layers layers{
      mode, stride, count, batch_first, train, bidirectional, C10_AS_INTARRAYREF_SLOW(batch_sizes).vec()};
  const int64_t width = (projection > 0 ? projection : hidden_size).expect_int() * (bidirectional ? 2 : 1);
  auto sizes = input.sizes().vec();
  sizes.back() = width;
  auto output = at::empty(sizes, input.options());
  auto last = at::empty_like(hidden, at::MemoryFormat::Contiguous);
  auto last_cell =
      mode == kLstm ? at::empty_like(*cell, at::MemoryFormat::Contiguous) : at::empty({0}, input.options());
  Tensors reads{input, hidden, cell.value_or(Tensor())};
  reads.insert(reads.end(), weights.begin(), weights.end());
  operators::launch(
      "aten::_cudnn_rnn", reads, {output, last, last_cell}, [layers](const Tensors& reads, const Tensors& writes) {
        const auto weights = at::TensorList(reads).slice(3);
        const auto [output, hidden, cell] = run(layers, reads[0], reads[1], reads[2], weights);
        writes[0].copy_(output);
        writes[1].copy_(hidden);
        if (cell.defined()) {
          writes[2].copy_(cell);
        }
      });
  return {
      output, last, last_cell, at::empty({0}, input.options().dtype(at::kByte)),
      buffer.value_or(at::empty({0}, input.options()))};
}

Tensor with_gradient(const Tensor& tensor) {
  return operators::copied(operators::over_bytes(tensor)).requires_grad_();
}

// The host runs it: it differentiates the forward pass, and the engine of autograd cannot be entered by a kernel.
std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> backward(
    const Tensor& input,
    at::TensorList weights,
    int64_t stride,
    const Tensor&,
    const Tensor& hidden,
    const std::optional<Tensor>& cell,
    const Tensor&,
    const std::optional<Tensor>& of_output,
    const std::optional<Tensor>& of_hidden,
    const std::optional<Tensor>& of_cell,
    int64_t mode,
    c10::SymInt,
    c10::SymInt,
    int64_t count,
    bool batch_first,
    double dropout,
    bool train,
    bool bidirectional,
    c10::SymIntArrayRef batch_sizes,
    const std::optional<Tensor>&,
    const Tensor&,
    std::array<bool, 4>) {
  refuse_dropout(dropout, train);
  const Layers layers{
      mode, stride, count, batch_first, train, bidirectional, C10_AS_INTARRAYREF_SLOW(batch_sizes).vec()};
  operators::wait_to_run("aten::_cudnn_rnn_backward", input.device().index());
  std::vector<Tensor> leaves;
  {
    const operators::Differentiating differentiating;
    leaves = {with_gradient(input), with_gradient(hidden)};
    leaves.push_back(mode == kLstm ? with_gradient(*cell) : at::zeros({1}).requires_grad_());
    for (const Tensor& weight : weights) {
      leaves.push_back(with_gradient(weight));
    }
    const auto [output, last, last_cell] =
        run(layers, leaves[0], leaves[1], mode == kLstm ? leaves[2] : Tensor(), at::TensorList(leaves).slice(3));
    std::vector<Tensor> ends, along;
    const auto add = [&](const Tensor& end, const std::optional<Tensor>& gradient) {
      if (end.defined() && gradient.has_value() && gradient->defined()) {
        ends.push_back(end);
        along.push_back(operators::copied(operators::over_bytes(*gradient)));
      }
    };
    add(output, of_output);
    add(last, of_hidden);
    add(last_cell, of_cell);
    leaves = torch::autograd::grad(ends, leaves, along, std::nullopt, false, true);
  }
  size_t next = 0;
  const auto moved = [&](const Tensor& like) {
    const Tensor& found = leaves[next++];
    auto made = at::empty(like.sizes(), like.options());
    auto bytes = operators::over_bytes(made);
    found.defined() ? bytes.copy_(found.detach()) : bytes.zero_();
    return made;
  };
  const Tensor grad_input = moved(input), grad_hidden = moved(hidden);
  const Tensor grad_cell = mode == kLstm ? moved(*cell) : (++next, Tensor());
  std::vector<Tensor> grad_weights;
  for (const Tensor& weight : weights) {
    grad_weights.push_back(moved(weight));
  }
  return {grad_input, grad_hidden, grad_cell, grad_weights};
}

// One tensor behind another in one buffer, as cuDNN wants them; each weight then is a part of it.
Tensor flatten_weight(
    at::TensorList weights, int64_t, c10::SymInt, int64_t, c10::SymInt, c10::SymInt, int64_t, bool, bool) {
  int64_t count = 0;
  for (const Tensor& weight : weights) {
    count += weight.numel();
  }
  auto buffer = at::empty({count}, weights[0].options());
  int64_t offset = 0;
  for (const Tensor& weight : weights) {
    auto part = buffer.narrow(0, offset, weight.numel()).view(weight.sizes());
    part.copy_(weight);
    const_cast<Tensor&>(weight).set_(buffer.storage(), part.storage_offset(), part.sizes(), part.strides());
    offset += weight.numel();
  }
  return buffer;
}

// Without cuDNN while it lasts: PyTorch then builds layers of cells.
class WithoutCudnn {
 public:
  WithoutCudnn() {
    at::globalContext().setUserEnabledCuDNN(false);
  }
  ~WithoutCudnn() {
    at::globalContext().setUserEnabledCuDNN(enabled_);
  }

 private:
  const bool enabled_ = at::globalContext().userEnabledCuDNN();
};

bool is_for_cudnn(double dropout, bool train) {
  return at::globalContext().userEnabledCuDNN() && (dropout == 0 || !train);
}

std::tuple<Tensor, Tensor, Tensor> by_cudnn(
    Mode mode,
    const Tensor& input,
    const Tensor& hidden,
    const Tensor& cell,
    at::TensorList weights,
    bool biases,
    int64_t count,
    bool train,
    bool bidirectional,
    bool batch_first,
    at::IntArrayRef batch_sizes = {}) {
  const bool projects = cell.defined() && cell.size(2) != hidden.size(2);
  const int64_t stride = (biases ? 4 : 2) + (projects ? 1 : 0);
  const int64_t width = cell.defined() ? cell.size(2) : hidden.size(2);
  const auto states = cell.defined() ? std::optional(cell.contiguous()) : std::nullopt;
  const auto [output, last, last_cell, reserve, buffer] = at::_cudnn_rnn(
      input, weights, stride, {}, hidden.contiguous(), states, mode, width, projects ? hidden.size(2) : 0, count,
      batch_first, 0, train, bidirectional, batch_sizes, {});
  return {output, last, last_cell};
}

std::vector<int64_t> numbers(const Tensor& batch_sizes) {
  return {batch_sizes.data_ptr<int64_t>(), batch_sizes.data_ptr<int64_t>() + batch_sizes.numel()};
}

std::tuple<Tensor, Tensor, Tensor> lstm(
    const Tensor& input,
    at::TensorList states,
    at::TensorList weights,
    bool biases,
    int64_t count,
    double dropout,
    bool train,
    bool bidirectional,
    bool batch_first) {
  if (is_for_cudnn(dropout, train)) {
    return by_cudnn(kLstm, input, states[0], states[1], weights, biases, count, train, bidirectional, batch_first);
  }
  const WithoutCudnn without;
  return at::native::lstm(input, states, weights, biases, count, dropout, train, bidirectional, batch_first);
}

std::tuple<Tensor, Tensor, Tensor> packed_lstm(
    const Tensor& input,
    const Tensor& batch_sizes,
    at::TensorList states,
    at::TensorList weights,
    bool biases,
    int64_t count,
    double dropout,
    bool train,
    bool bidirectional) {
  if (is_for_cudnn(dropout, train)) {
    return by_cudnn(
        kLstm, input, states[0], states[1], weights, biases, count, train, bidirectional, false, numbers(batch_sizes));
  }
  const WithoutCudnn without;
  return at::native::lstm(input, batch_sizes, states, weights, biases, count, dropout, train, bidirectional);
}

// X(name of the layer, its number for cuDNN)
#define STANDIN_LAYERS(X) X(gru, kGru) X(rnn_tanh, kTanh) X(rnn_relu, kRelu)

#define STANDIN_DEFINE(name, mode)                                                                                   \
  std::tuple<Tensor, Tensor> name(                                                                                   \
      const Tensor& input, const Tensor& hidden, at::TensorList weights, bool biases, int64_t count, double dropout, \
      bool train, bool bidirectional, bool batch_first) {                                                            \
    if (is_for_cudnn(dropout, train)) {                                                                              \
      const auto found =                                                                                             \
          by_cudnn(mode, input, hidden, {}, weights, biases, count, train, bidirectional, batch_first);              \
      return {std::get<0>(found), std::get<1>(found)};                                                               \
    }                                                                                                                \
    const WithoutCudnn without;                                                                                      \
    return at::native::name(input, hidden, weights, biases, count, dropout, train, bidirectional, batch_first);      \
  }                                                                                                                  \
  std::tuple<Tensor, Tensor> packed_##name(                                                                          \
      const Tensor& input, const Tensor& batch_sizes, const Tensor& hidden, at::TensorList weights, bool biases,     \
      int64_t count, double dropout, bool train, bool bidirectional) {                                               \
    if (is_for_cudnn(dropout, train)) {                                                                              \
      const auto found = by_cudnn(                                                                                   \
          mode, input, hidden, {}, weights, biases, count, train, bidirectional, false, numbers(batch_sizes));       \
      return {std::get<0>(found), std::get<1>(found)};                                                               \
    }                                                                                                                \
    const WithoutCudnn without;                                                                                      \
    return at::native::name(input, batch_sizes, hidden, weights, biases, count, dropout, train, bidirectional);      \
  }
STANDIN_LAYERS(STANDIN_DEFINE)
#undef STANDIN_DEFINE

} // namespace

void add_recurrent_layers(torch::Library& library) {
  library.impl("_cudnn_rnn", forward);
  library.impl("_cudnn_rnn_backward", backward);
  library.impl("_cudnn_rnn_flatten_weight", flatten_weight);
}

void add_recurrent_calls(torch::Library& library) {
  library.impl("lstm.input", lstm);
  library.impl("lstm.data", packed_lstm);
#define STANDIN_ADD(name, mode)       \
  library.impl(#name ".input", name); \
  library.impl(#name ".data", packed_##name);
  STANDIN_LAYERS(STANDIN_ADD)
#undef STANDIN_ADD
}

} // namespace standin::library
