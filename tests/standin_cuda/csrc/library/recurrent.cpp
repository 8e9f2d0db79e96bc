// Recurrent layers: PyTorch gives whole ones to cuDNN, and cells to kernels of its own.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <c10/core/GradMode.h>
#include <ATen/ThreadLocalState.h>

#include "library/library.h"
#include "operators/device_tensors.h"
#include "operators/kernels.h"

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
std::tuple<Tensor, Tensor, Tensor>
run(const Layers& layers, const Tensor& input, const Tensor& hidden, const Tensor& cell, at::TensorList weights) {
  const bool packed = !layers.batch_sizes.empty();
  const auto batches = packed ? at::tensor(layers.batch_sizes, at::kLong) : Tensor();
  const bool biases = layers.has_biases();
  if (layers.mode == kLstm) {
    const std::vector<Tensor> states{hidden, cell};
    return packed ? at::lstm(input, batches, states, weights, biases, layers.count, 0, false, layers.bidirectional)
                  : at::lstm(
                        input, states, weights, biases, layers.count, 0, false, layers.bidirectional, layers.batch_first);
  }
  std::tuple<Tensor, Tensor> found;
  const auto call = [&](auto of_packed, auto of_dense) {
    found = packed
        ? of_packed(input, batches, hidden, weights, biases, layers.count, 0, false, layers.bidirectional)
        : of_dense(
              input, hidden, weights, biases, layers.count, 0, false, layers.bidirectional, layers.batch_first);
  };
#define STANDIN_CALL(name)                                                       \
  call(                                                                          \
      [](auto&&... arguments) { return at::name(arguments...); },                \
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
    const Tensor& input, at::TensorList weights, int64_t stride, const std::optional<Tensor>& buffer,
    const Tensor& hidden, const std::optional<Tensor>& cell, int64_t mode, c10::SymInt hidden_size,
    c10::SymInt projection, int64_t count, bool batch_first, double dropout, bool train, bool bidirectional,
    c10::SymIntArrayRef batch_sizes, const std::optional<Tensor>&) {
  refuse_dropout(dropout, train);
  const Layers layers{
      mode, stride, count, batch_first, train, bidirectional, C10_AS_INTARRAYREF_SLOW(batch_sizes).vec()};
  const int64_t width = (projection > 0 ? projection : hidden_size).expect_int() * (bidirectional ? 2 : 1);
  auto sizes = input.sizes().vec();
  sizes.back() = width;
  auto output = at::empty(sizes, input.options());
  auto last = at::empty_like(hidden, at::MemoryFormat::Contiguous);
  auto last_cell = mode == kLstm ? at::empty_like(*cell, at::MemoryFormat::Contiguous) : at::empty({0}, input.options());
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
  return {output, last, last_cell, at::empty({0}, input.options().dtype(at::kByte)), buffer.value_or(Tensor())};
}

Tensor with_gradient(const Tensor& tensor) {
  return operators::copied(operators::over_bytes(tensor)).requires_grad_();
}

// The host runs it: it differentiates the forward pass, and the engine of autograd cannot be entered by a kernel.
std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> backward(
    const Tensor& input, at::TensorList weights, int64_t stride, const Tensor&, const Tensor& hidden,
    const std::optional<Tensor>& cell, const Tensor&, const std::optional<Tensor>& of_output,
    const std::optional<Tensor>& of_hidden, const std::optional<Tensor>& of_cell, int64_t mode, c10::SymInt,
    c10::SymInt, int64_t count, bool batch_first, double dropout, bool train, bool bidirectional,
    c10::SymIntArrayRef batch_sizes, const std::optional<Tensor>&, const Tensor&, std::array<bool, 4>) {
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

std::tuple<Tensor, Tensor, Tensor> lstm_cell(
    const Tensor& of_input, const Tensor& of_hidden, const Tensor& cell, const std::optional<Tensor>& input_bias,
    const std::optional<Tensor>& hidden_bias) {
  auto next = at::empty_like(cell), next_cell = at::empty_like(cell), workspace = at::empty_like(of_input);
  operators::launch(
      "aten::_thnn_fused_lstm_cell",
      {of_input, of_hidden, cell, input_bias.value_or(Tensor()), hidden_bias.value_or(Tensor())},
      {next, next_cell, workspace}, [](const Tensors& reads, const Tensors& writes) {
        Tensor gates = reads[0] + reads[1];
        if (reads[3].defined()) {
          gates = gates + reads[3] + reads[4];
        }
        const auto parts = gates.chunk(4, 1);
        const Tensor in = parts[0].sigmoid(), forget = parts[1].sigmoid(), new_cell = parts[2].tanh();
        const Tensor out = parts[3].sigmoid();
        const Tensor cell = forget * reads[2] + in * new_cell;
        writes[0].copy_(out * cell.tanh());
        writes[1].copy_(cell);
        writes[2].copy_(at::cat({in, forget, new_cell, out}, 1));
      });
  return {next, next_cell, workspace};
}

std::tuple<Tensor, Tensor, Tensor> lstm_cell_backward(
    const std::optional<Tensor>& of_hidden, const std::optional<Tensor>& of_cell, const Tensor& cell,
    const Tensor& next_cell, const Tensor& workspace, bool has_bias) {
  auto of_gates = at::empty_like(workspace), of_cell_before = at::empty_like(cell);
  operators::launch(
      "aten::_thnn_fused_lstm_cell_backward_impl",
      {cell, next_cell, workspace, of_hidden.value_or(Tensor()), of_cell.value_or(Tensor())},
      {of_gates, of_cell_before}, [](const Tensors& reads, const Tensors& writes) {
        const auto parts = reads[2].chunk(4, 1);
        const Tensor &in = parts[0], &forget = parts[1], &new_cell = parts[2], &out = parts[3];
        const Tensor squashed = reads[1].tanh();
        const Tensor hidden = reads[3].defined() ? reads[3] : at::zeros_like(reads[0]);
        Tensor along = hidden * out * (1 - squashed * squashed);
        if (reads[4].defined()) {
          along = along + reads[4];
        }
        writes[0].copy_(at::cat(
            {along * new_cell * in * (1 - in), along * reads[0] * forget * (1 - forget),
             along * in * (1 - new_cell * new_cell), hidden * squashed * out * (1 - out)},
            1));
        writes[1].copy_(along * forget);
      });
  return {of_gates, of_cell_before, has_bias ? of_gates.sum(0) : Tensor()};
}

std::tuple<Tensor, Tensor> gru_cell(
    const Tensor& of_input, const Tensor& of_hidden, const Tensor& hidden, const std::optional<Tensor>& input_bias,
    const std::optional<Tensor>& hidden_bias) {
  auto next = at::empty_like(hidden), workspace = at::empty({hidden.size(0), 5 * hidden.size(1)}, hidden.options());
  operators::launch(
      "aten::_thnn_fused_gru_cell",
      {of_input, of_hidden, hidden, input_bias.value_or(Tensor()), hidden_bias.value_or(Tensor())}, {next, workspace},
      [](const Tensors& reads, const Tensors& writes) {
        const auto left = (reads[3].defined() ? reads[0] + reads[3] : reads[0]).chunk(3, 1);
        const auto right = (reads[4].defined() ? reads[1] + reads[4] : reads[1]).chunk(3, 1);
        const Tensor reset = (left[0] + right[0]).sigmoid(), keep = (left[1] + right[1]).sigmoid();
        const Tensor fresh = (left[2] + reset * right[2]).tanh();
        writes[0].copy_(fresh + keep * (reads[2] - fresh));
        writes[1].copy_(at::cat({reset, keep, fresh, reads[2], right[2]}, 1));
      });
  return {next, workspace};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>
gru_cell_backward(const Tensor& of_next, const Tensor& workspace, bool has_bias) {
  const auto options = workspace.options();
  const int64_t rows = workspace.size(0), width = workspace.size(1) / 5;
  auto of_input = at::empty({rows, 3 * width}, options), of_hidden = at::empty({rows, 3 * width}, options);
  auto of_before = at::empty({rows, width}, options);
  operators::launch(
      "aten::_thnn_fused_gru_cell_backward", {of_next, workspace}, {of_input, of_hidden, of_before},
      [](const Tensors& reads, const Tensors& writes) {
        const auto parts = reads[1].chunk(5, 1);
        const Tensor &reset = parts[0], &keep = parts[1], &fresh = parts[2], &hidden = parts[3], &right = parts[4];
        const Tensor of_keep = reads[0] * (hidden - fresh) * keep * (1 - keep);
        const Tensor of_fresh = reads[0] * (1 - keep) * (1 - fresh * fresh);
        const Tensor of_reset = of_fresh * right * reset * (1 - reset);
        writes[0].copy_(at::cat({of_reset, of_keep, of_fresh}, 1));
        writes[1].copy_(at::cat({of_reset, of_keep, of_fresh * reset}, 1));
        writes[2].copy_(reads[0] * keep);
      });
  return {
      of_input, of_hidden, of_before, has_bias ? of_input.sum(0) : Tensor(), has_bias ? of_hidden.sum(0) : Tensor()};
}

} // namespace

void add_recurrent(torch::Library& library) {
  library.impl("_cudnn_rnn", forward);
  library.impl("_cudnn_rnn_backward", backward);
  library.impl("_cudnn_rnn_flatten_weight", flatten_weight);
  library.impl("_thnn_fused_lstm_cell", lstm_cell);
  library.impl("_thnn_fused_lstm_cell_backward_impl", lstm_cell_backward);
  library.impl("_thnn_fused_gru_cell", gru_cell);
  library.impl("_thnn_fused_gru_cell_backward", gru_cell_backward);
}

} // namespace standin::library
