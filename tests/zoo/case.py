"""What a zoo case is, and the helpers all cases share: seeded inputs, seeded weights, flat outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import torch
from torch import nn

Device = torch.device | str
Call = Callable[[nn.Module, Device, int], list[torch.Tensor]]


@dataclass(frozen=True)
class ModelCase:
    """One architecture at a tiny config, with the entry doors through which its weights are used.

    `calls` leave the grad mode to the caller; `run` is the convenient form without gradients.
    `unused` holds name patterns of parameters that no call can make matter, each with the reason.
    `repeats` names calls that touch no weight that the other calls do not touch (tiling, slicing).
    `float32_only` names calls that diffusers cannot do in any other dtype.
    """

    name: str
    build: Callable[[], nn.Module]
    calls: Mapping[str, Call]
    unused: Mapping[str, str] = field(default_factory=dict)
    repeats: frozenset[str] = frozenset()
    float32_only: frozenset[str] = frozenset()

    def run(
        self, model: nn.Module, call: str = "forward", device: Device = "cpu", seed: int = 0
    ) -> list[torch.Tensor]:
        """The outputs of one call without gradients, brought to the CPU."""
        with torch.no_grad():
            return [output.cpu() for output in self.calls[call](model, device, seed)]


class Draw:
    """Seeded inputs: drawn on the CPU, cast to the compute dtype if they are real numbers, then moved to `device`."""

    def __init__(self, model: nn.Module, device: Device, seed: int) -> None:
        self.device = device
        self.dtype = compute_dtype(model)
        self.generator = torch.Generator("cpu").manual_seed(seed)

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal numbers."""
        return self.put(torch.randn(*shape, generator=self.generator))

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """Numbers spread evenly over [low, high)."""
        return self.put(torch.rand(*shape, generator=self.generator) * (high - low) + low)

    def integers(self, low: int, high: int, *shape: int) -> torch.Tensor:
        """Whole numbers in [low, high), as int64."""
        return torch.randint(low, high, shape, generator=self.generator).to(self.device)

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """Any tensor on the device, in the compute dtype if it holds real numbers."""
        return tensor.to(device=self.device, dtype=self.dtype if tensor.is_floating_point() else tensor.dtype)


def compute_dtype(model: nn.Module) -> torch.dtype:
    """The dtype that real inputs should have: that of the first wide enough real parameter, else float32."""
    for parameter in model.parameters():
        if parameter.dtype.is_floating_point and parameter.dtype.itemsize >= 2:
            return parameter.dtype
    return torch.float32


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """All tensors inside nested tuples, lists, mappings and output dataclasses, in their order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for item in vars(value).values():
            yield from tensors_in(item)


def flat(value: Any) -> list[torch.Tensor]:
    """All tensors inside an output, as a list that must not be empty."""
    tensors = list(tensors_in(value))
    if not tensors:
        raise AssertionError(f"no tensor in a {type(value).__name__}")
    return tensors


def built(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A model in eval mode with all weights drawn from `seed`; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().eval()
    randomise(model, seed)
    return model


def configured(kind: Callable[..., Any], seed: int, changes: Mapping[str, Any], **config: Any) -> nn.Module:
    """A built model from a config given as keyword arguments, some of which may be changed."""
    return built(lambda: kind(**{**config, **changes}), seed)


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> None:
    """Draw every parameter anew, also norms, gates and whatever starts at zero or one; activations stay tame.

    Vectors called weight or gamma scatter around one, other vectors around zero; matrices and kernels get
    a standard deviation of one over the square root of the fan-in; embeddings are standard normal.
    """
    generator = torch.Generator("cpu").manual_seed(seed + 1)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if id(parameter) in embeddings:
            drawn = noise
        elif parameter.ndim == 0 or parameter.numel() == max(parameter.shape):
            centre = 1.0 if name.endswith(("weight", "gamma")) else 0.0
            drawn = centre + 0.2 * noise
        else:
            drawn = noise * (parameter.shape[0] / parameter.numel()) ** 0.5
        parameter.copy_(drawn)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.copy_(0.2 * torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))


def equal_outputs(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    """Whether two lists of outputs are bit-equal in number, dtype, shape and value."""
    return len(first) == len(second) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(first, second, strict=True)
    )


@torch.no_grad()
def weights_matter(case: ModelCase, seed: int = 0) -> set[str]:
    """The parameters whose change no call notices: each one is perturbed alone, and restored after."""
    model = case.build()
    calls = [call for call in case.calls if call not in case.repeats]
    expected = {call: case.run(model, call, seed=seed) for call in calls}
    unnoticed = set()
    generator = torch.Generator("cpu").manual_seed(seed + 2)
    for name, parameter in model.named_parameters():
        kept = parameter.clone()
        parameter.add_(torch.randn(parameter.shape, generator=generator))
        if all(equal_outputs(case.run(model, call, seed=seed), expected[call]) for call in calls):
            unnoticed.add(name)
        parameter.copy_(kept)
    return unnoticed
