#include "kernels/kernels.h"

#include <ATen/ThreadLocalState.h>
#include <c10/core/GradMode.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <cstdio>

#include "api/launch.h"
#include "kernels/device_tensors.h"

namespace standin::operators {
namespace {

const at::ThreadLocalState* modes = nullptr;
const at::ThreadLocalState* differentiating = nullptr;

struct Body {
  std::function<void()> function;
};

int run(void* data, char* message, size_t capacity) {
  const at::ThreadLocalStateGuard in_no_mode(*modes);
  try {
    static_cast<Body*>(data)->function();
    return cudaSuccess;
  } catch (const c10::IndexError& error) {
    std::snprintf(message, capacity, "%s", error.what_without_backtrace());
    return cudaErrorAssert; // what kernels of CUDA do about indices
  } catch (const c10::Error& error) {
    std::snprintf(message, capacity, "%s", error.what_without_backtrace());
  } catch (const std::exception& error) {
    std::snprintf(message, capacity, "%s", error.what());
  }
  return cudaErrorLaunchFailure;
}

void destroy(void* data) {
  delete static_cast<Body*>(data);
}

std::vector<std::optional<DeviceView>> views_of(const Tensors& tensors) {
  std::vector<std::optional<DeviceView>> views;
  for (const at::Tensor& tensor : tensors) {
    views.push_back(tensor.defined() ? std::optional(DeviceView(tensor)) : std::nullopt);
  }
  return views;
}

Tensors tensors_over(const std::vector<std::optional<DeviceView>>& views) {
  Tensors tensors;
  for (const auto& view : views) {
    tensors.push_back(view.has_value() ? view->over_bytes() : at::Tensor());
  }
  return tensors;
}

} // namespace

void remember_modes() {
  {
    const c10::AutoGradMode enabled(true);
    differentiating = new at::ThreadLocalState();
  }
  const BelowModes below;
  const c10::NoGradGuard no_grad;
  modes = new at::ThreadLocalState();
}

struct Differentiating::State {
  at::ThreadLocalStateGuard guard{*differentiating};
};

Differentiating::Differentiating() : state_(new State) {}
Differentiating::~Differentiating() = default;

void launch(const std::string& name, c10::DeviceIndex device, Cost cost, std::function<void()> body) {
  const c10::cuda::CUDAGuard guard(device);
  const StandinKernel kernel{name.c_str(), run, destroy, new Body{std::move(body)}, cost.bytes, cost.flops};
  C10_CUDA_CHECK(standin_launch(c10::cuda::getCurrentCUDAStream(device), &kernel));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void launch(
    const std::string& name,
    const Tensors& reads,
    const Tensors& writes,
    std::function<void(const Tensors&, const Tensors&)> body,
    double flops) {
  Cost cost{0, flops};
  for (const Tensors* tensors : {&reads, &writes}) {
    for (const at::Tensor& tensor : *tensors) {
      cost.bytes += extent(tensor);
    }
  }
  const auto device = reads.at(0).device().index();
  launch(name, device, cost, [reads = views_of(reads), writes = views_of(writes), body = std::move(body)] {
    body(tensors_over(reads), tensors_over(writes));
  });
}

void wait_to_run(const std::string& name, c10::DeviceIndex device) {
  const c10::cuda::CUDAGuard guard(device);
  C10_CUDA_CHECK(standin_run_now(c10::cuda::getCurrentCUDAStream(device), name.c_str()));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

} // namespace standin::operators
