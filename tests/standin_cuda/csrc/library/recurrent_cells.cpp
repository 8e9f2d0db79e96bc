// Cells of recurrent layers, which have kernels for CUDA alone.
#include <ATen/ATen.h>

#include "library/library.h"
#include "kernels/kernels.h"

namespace standin::library {
namespace {

using at::Tensor;
using operators::Tensors;

std::tuple<Tensor, Tensor, Tensor> lstm_cell(
    const Tensor& of_input,
    const Tensor& of_hidden,
    const Tensor& cell,
    const std::optional<Tensor>& input_bias,
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
    const std::optional<Tensor>& of_hidden,
    const std::optional<Tensor>& of_cell,
    const Tensor& cell,
    const Tensor& next_cell,
    const Tensor& workspace,
    bool has_bias) {
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
        writes[0].copy_(
            at::cat(
                {along * new_cell * in * (1 - in), along * reads[0] * forget * (1 - forget),
                 along * in * (1 - new_cell * new_cell), hidden * squashed * out * (1 - out)},
                1));
        writes[1].copy_(along * forget);
      });
  return {of_gates, of_cell_before, has_bias ? of_gates.sum(0) : Tensor()};
}

std::tuple<Tensor, Tensor> gru_cell(
    const Tensor& of_input,
    const Tensor& of_hidden,
    const Tensor& hidden,
    const std::optional<Tensor>& input_bias,
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

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gru_cell_backward(
    const Tensor& of_next, const Tensor& workspace, bool has_bias) {
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

void add_recurrent_cells(torch::Library& library) {
  library.impl("_thnn_fused_lstm_cell", lstm_cell);
  library.impl("_thnn_fused_lstm_cell_backward_impl", lstm_cell_backward);
  library.impl("_thnn_fused_gru_cell", gru_cell);
  library.impl("_thnn_fused_gru_cell_backward", gru_cell_backward);
}

} // namespace standin::library
