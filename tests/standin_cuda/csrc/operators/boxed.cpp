#include "operators/boxed.h"

#include <ATen/ATen.h>
#include <ATen/MemoryOverlap.h>
#include <c10/cuda/CUDAFunctions.h>

#include "operators/call.h"
#include "operators/cost.h"
#include "kernels/device_tensors.h"
#include "kernels/kernels.h"
#include "operators/random.h"

namespace standin::operators {
namespace {

// One use of an operator by the program.
class Use {
 public:
  Use(const c10::OperatorHandle& op, torch::jit::Stack* stack) : op_(op), stack_(stack), name_(op.schema().name()) {
    const auto& arguments = op.schema().arguments();
    const auto values = torch::jit::last(*stack, arguments.size());
    arguments_.assign(values.begin(), values.end());
    for (size_t i = 0; i < arguments.size(); ++i) {
      const auto* alias = arguments[i].alias_info();
      const bool written = alias != nullptr && alias->isWrite();
      const bool indices = arguments_[i].isOptionalTensorList();
      c10::IValue ignored;
      replace_tensors({arguments_[i]}, &ignored, [&](const at::Tensor& tensor) {
        if (tensor.defined()) {
          operands_.push_back({tensor, written, indices || (tensor.dim() == 0 && !written)});
        }
        return tensor;
      });
      if (arguments_[i].isDevice() && arguments_[i].toDevice().is_cuda() && arguments_[i].toDevice().has_index()) {
        device_ = arguments_[i].toDevice().index();
      }
    }
    for (const Operand& operand : operands_) {
      if (is_on_device(operand.tensor)) {
        device_ = operand.tensor.device().index();
        break;
      }
    }
  }

  void run() {
    check_devices();
    overlaps_ = overlap();
    const BelowModes below;
    std::vector<c10::IValue> results;
    if (must_run_now() || !shapes_from_meta(&results)) {
      run_now();
      return;
    }
    launch_late(results);
    torch::jit::drop(*stack_, arguments_.size());
    stack_->insert(stack_->end(), results.begin(), results.end());
  }

 private:
  void check_devices() const {
    const c10::Device here(c10::kCUDA, device_);
    for (const auto& [tensor, written, may_be_on_cpu] : operands_) {
      TORCH_CHECK(
          tensor.device() == here || (tensor.is_cpu() && may_be_on_cpu),
          "Expected all tensors to be on the same device, but found at least two devices, ", here, " and ",
          tensor.device(), "! (when checking arguments of ", name_, ")");
    }
  }

  bool must_run_now() const {
    if (op_.hasTag(at::Tag::data_dependent_output) || overlaps_) {
      return true;
    }
    if (op_.hasTag(at::Tag::dynamic_output_shape)) {
      const bool indexes = std::any_of(
          arguments_.begin(), arguments_.end(), [](const c10::IValue& value) { return value.isOptionalTensorList(); });
      return !indexes || selects_by_mask();
    }
    const auto& returns = op_.schema().returns();
    return std::any_of(returns.begin(), returns.end(), [](const c10::Argument& value) {
      return value.type()->kind() != c10::TypeKind::TensorType &&
             !value.type()->isSubtypeOf(*c10::ListType::ofTensors());
    });
  }

  // Whether an index is a mask: then the shape of the result is in its values.
  bool selects_by_mask() const {
    return std::any_of(operands_.begin(), operands_.end(), [](const Operand& operand) {
      const auto type = operand.tensor.scalar_type();
      return operand.may_be_on_cpu && (type == at::kBool || type == at::kByte);
    });
  }

  // Whether elements that are written share memory with one another, or in part with what is read. Most operators
  // refuse that, and it is for the caller to hear it.
  bool overlap() const {
    for (const Operand& operand : operands_) {
      if (!operand.written) {
        continue;
      }
      if (at::has_internal_overlap(operand.tensor) == at::MemOverlap::Yes) {
        return true;
      }
      for (const Operand& other : operands_) {
        if (at::get_overlap_status(operand.tensor, other.tensor) == at::MemOverlapStatus::Partial) {
          return true;
        }
      }
    }
    return false;
  }

  // Calls the operator on tensors without memory. Returns false where it has no answer: then its arguments decide what
  // it returns, or it is wrong, which running it will tell.
  bool shapes_from_meta(std::vector<c10::IValue>* results) {
    torch::jit::Stack stack(arguments_.size());
    replace_tensors(arguments_, stack.data(), [&](const at::Tensor& tensor) {
      if (!tensor.defined()) {
        return tensor;
      }
      metas_.push_back(meta_of(tensor));
      return metas_.back();
    });
    for (c10::IValue& value : stack) {
      if (value.isDevice()) {
        value = c10::Device(c10::kMeta);
      } else if (value.isGenerator()) {
        value = c10::IValue();
      }
    }
    try {
      op_.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::Meta), &stack);
    } catch (const std::exception&) {
      return false;
    }
    for (size_t i = 0; i < operands_.size(); ++i) {
      if (operands_[i].written) {
        take_shape(operands_[i].tensor, metas_[i]);
      }
    }
    results->resize(stack.size());
    replace_tensors(stack, results->data(), [&](const at::Tensor& meta) { return result_for(meta); });
    return true;
  }

  static at::Tensor meta_of(const at::Tensor& tensor) {
    if (tensor.is_cpu() && tensor.dim() == 0) {
      return tensor; // a number, which decides nothing but types
    }
    auto meta = at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(c10::kMeta));
    meta._set_conj(tensor.is_conj());
    meta._set_neg(tensor.is_neg());
    return meta;
  }

  static void take_shape(const at::Tensor& tensor, const at::Tensor& meta) {
    if (tensor.sizes() != meta.sizes()) {
      tensor.resize_(meta.sizes());
      if (tensor.strides() != meta.strides()) {
        tensor.as_strided_(meta.sizes(), meta.strides());
      }
    }
  }

  at::Tensor result_for(const at::Tensor& meta) {
    if (!meta.defined()) {
      views_.emplace_back();
      return meta;
    }
    for (size_t i = 0; i < metas_.size(); ++i) {
      if (metas_[i].is_same(meta)) {
        views_.emplace_back();
        return operands_[i].tensor;
      }
      if (is_on_device(operands_[i].tensor) && metas_[i].is_alias_of(meta)) {
        views_.emplace_back();
        const at::Tensor& whole = operands_[i].tensor;
        return whole.as_strided(meta.sizes(), meta.strides(), whole.storage_offset() + meta.storage_offset());
      }
    }
    const auto options = meta.options().device(c10::Device(c10::kCUDA, device_));
    auto made = at::empty_strided(meta.sizes(), meta.strides(), options);
    made_.push_back(made);
    views_.emplace_back(DeviceView(made));
    return made;
  }

  void launch_late(const std::vector<c10::IValue>& results) {
    Call call(op_, arguments_, operands_);
    call.write_results_to(views_);
    draw_numbers(call);
    double elements = 0;
    Cost cost;
    for (const at::Tensor& made : made_) {
      cost.bytes += extent(made);
    }
    for (const Operand& operand : operands_) {
      cost.bytes += is_on_device(operand.tensor) ? extent(operand.tensor) : 0;
    }
    if (!results.empty() && results[0].isTensor() && results[0].toTensor().defined()) {
      elements = static_cast<double>(results[0].toTensor().numel());
    }
    cost.flops = flops_of(name_, arguments_, elements);
    launch(name_, device_, cost, std::move(call));
  }

  void draw_numbers(Call& call) const {
    if (!is_random(op_)) {
      return;
    }
    std::optional<at::Generator> given;
    for (const c10::IValue& value : arguments_) {
      if (value.isGenerator()) {
        given = value.toGenerator();
      }
    }
    call.draw_from(draw(given, device_));
  }

  // The host runs the operator itself, when the stream has come to it.
  void run_now() {
    wait_to_run(name_, device_);
    std::function<at::Generator()> generator;
    torch::jit::Stack stack(arguments_.size());
    Tensors on_cpu;
    replace_tensors(arguments_, stack.data(), [&](const at::Tensor& tensor) {
      if (!tensor.defined()) {
        return tensor;
      }
      const bool written = operands_[on_cpu.size()].written; // it may be given another shape
      const auto bytes = is_on_device(tensor) ? over_bytes(tensor) : tensor;
      const bool direct = is_on_device(tensor) && !written && DeviceView(tensor).aligned();
      on_cpu.push_back(direct || overlaps_ ? bytes : copied(bytes));
      return on_cpu.back();
    });
    const auto& arguments = op_.schema().arguments();
    for (size_t i = 0; i < arguments.size(); ++i) {
      if (stack[i].isDevice()) {
        stack[i] = c10::Device(c10::kCPU);
      } else if (takes_generator(arguments[i])) {
        stack[i] = draw(stack[i].toOptional<at::Generator>(), device_)();
      }
    }
    op_.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack);
    for (size_t i = 0; i < operands_.size(); ++i) {
      if (operands_[i].written && is_on_device(operands_[i].tensor) && !overlaps_) {
        take_shape(operands_[i].tensor, on_cpu[i]);
        over_bytes(operands_[i].tensor).copy_(on_cpu[i]);
      }
    }
    torch::jit::drop(*stack_, arguments_.size());
    const size_t first = stack_->size();
    stack_->resize(first + stack.size());
    replace_tensors(stack, stack_->data() + first, [&](const at::Tensor& result) { return moved(result, on_cpu); });
  }

  at::Tensor moved(const at::Tensor& result, const Tensors& on_cpu) const {
    if (!result.defined()) {
      return result;
    }
    for (size_t i = 0; i < on_cpu.size(); ++i) {
      if (on_cpu[i].is_same(result)) {
        return operands_[i].tensor;
      }
    }
    const auto options = result.options().device(c10::Device(c10::kCUDA, device_));
    auto made = result.is_non_overlapping_and_dense() ? at::empty_strided(result.sizes(), result.strides(), options)
                                                      : at::empty(result.sizes(), options);
    if (result.numel() != 0) {
      over_bytes(made).copy_(result);
    }
    return made;
  }

  const c10::OperatorHandle& op_;
  torch::jit::Stack* stack_;
  const std::string name_;
  std::vector<c10::IValue> arguments_;
  std::vector<Operand> operands_; // in the order of the arguments
  c10::DeviceIndex device_ = c10::cuda::current_device();
  bool overlaps_ = false;
  Tensors metas_; // of the operands
  Tensors made_; // results with memory of their own
  std::vector<std::optional<DeviceView>> views_; // of the results
};

} // namespace

void run_boxed(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Use(op, stack).run();
}

} // namespace standin::operators
