"""The module PyTorch finds as ``torch.sim``: what ``torch.cuda`` is for CUDA, as far as an offloading layer asks."""

from __future__ import annotations

from types import TracebackType
from typing import Any, NamedTuple

import torch

from . import device as _device

__all__ = [
    "DeviceProperties",
    "Event",
    "Stream",
    "StreamContext",
    "current_device",
    "current_stream",
    "default_stream",
    "device",
    "device_count",
    "empty_cache",
    "get_amp_supported_dtype",
    "get_device_name",
    "get_device_properties",
    "get_rng_state",
    "get_rng_state_all",
    "init",
    "initial_seed",
    "is_available",
    "is_bf16_supported",
    "is_initialized",
    "manual_seed",
    "manual_seed_all",
    "max_memory_allocated",
    "max_memory_reserved",
    "mem_get_info",
    "memory_allocated",
    "memory_reserved",
    "reset_peak_memory_stats",
    "seed",
    "set_device",
    "set_rng_state",
    "set_rng_state_all",
    "set_stream",
    "stream",
    "synchronize",
]

DeviceLike = torch.device | str | int | None


def _index(device: DeviceLike) -> int:
    if isinstance(device, str):
        device = torch.device(device)
    if isinstance(device, torch.device):
        if device.type != "sim":
            raise ValueError(f"expected a simulated device, got {device}")
        device = device.index
    if device is None or device < 0:
        return current_device()
    _device.extension().check_device(device)
    return device


# Devices


def init() -> None:
    """Do nothing: registration has done it."""


def is_initialized() -> bool:
    return True


def is_available() -> bool:
    return True


def device_count() -> int:
    return _device.extension().DEVICE_COUNT


def current_device() -> int:
    return _device.extension().current_device()


def set_device(device: DeviceLike) -> None:
    _device.extension().set_device(_index(device))


class device:
    """Context manager: makes a device the current one. ``None`` changes nothing."""

    def __init__(self, device: DeviceLike) -> None:
        self.idx = _index(device)
        self.prev_idx = -1

    def __enter__(self) -> device:
        self.prev_idx = current_device()
        set_device(self.idx)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        set_device(self.prev_idx)


class DeviceProperties(NamedTuple):
    name: str
    total_memory: int
    major: int = 8
    minor: int = 0
    multi_processor_count: int = 1


def get_device_properties(device: DeviceLike = None) -> DeviceProperties:
    return DeviceProperties(get_device_name(device), mem_get_info(device)[1])


def get_device_name(device: DeviceLike = None) -> str:
    return f"Simulated accelerator {_index(device)}"


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.bfloat16, torch.float16]


def is_bf16_supported() -> bool:
    return True


def _is_in_bad_fork() -> bool:
    return False


# Streams and events


class Stream(torch.Stream):
    """A stream of a simulated device; the current one when none is named."""

    def __new__(cls, device: DeviceLike = None, priority: int = 0) -> Stream:
        return super().__new__(cls, device=torch.device("sim", _index(device)), priority=priority)


class Event:
    """An event of a simulated device. What is made is a plain ``torch.Event``, as only those compare their times."""

    def __new__(cls, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> torch.Event:
        return torch.Event(device="sim", enable_timing=enable_timing, blocking=blocking, interprocess=interprocess)


class StreamContext:
    """Context manager: makes a stream, and its device, current. ``None`` changes nothing."""

    def __init__(self, stream: torch.Stream | None) -> None:
        self.stream = stream
        self.previous: tuple[int, torch.Stream] | None = None

    def __enter__(self) -> None:
        if self.stream is not None:
            self.previous = (current_device(), current_stream(self.stream.device))
            set_stream(self.stream)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.previous is not None:
            device, stream = self.previous
            set_stream(stream)
            set_device(device)


def stream(stream: torch.Stream | None) -> StreamContext:
    return StreamContext(stream)


def set_stream(stream: torch.Stream) -> None:
    torch.accelerator.set_stream(stream)


def current_stream(device: DeviceLike = None) -> torch.Stream:
    return torch.accelerator.current_stream(_index(device))


def default_stream(device: DeviceLike = None) -> torch.Stream:
    return torch.Stream(
        stream_id=0, device_index=_index(device), device_type=int(torch._C._autograd.DeviceType.PrivateUse1)
    )


def synchronize(device: DeviceLike = None) -> None:
    torch.accelerator.synchronize(_index(device))


# Memory


def memory_allocated(device: DeviceLike = None) -> int:
    return _device.stats().devices[_index(device)].live


def max_memory_allocated(device: DeviceLike = None) -> int:
    return _device.stats().devices[_index(device)].peak


memory_reserved = memory_allocated
max_memory_reserved = max_memory_allocated


def reset_peak_memory_stats(device: DeviceLike = None) -> None:
    _device.extension().reset_peak(_index(device))


def mem_get_info(device: DeviceLike = None) -> tuple[int, int]:
    """Free and total bytes; ``set_capacity`` sets the total."""
    index = _index(device)
    total = _device.extension().capacity(index)
    return total - memory_allocated(index), total


def empty_cache() -> None:
    """Do nothing: freed memory is not kept for reuse."""


# Random numbers


def _generator(device: DeviceLike) -> torch.Generator:
    return _device.extension().default_generator(_index(device))


def manual_seed(seed: int) -> None:
    _generator(None).manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    for index in range(device_count()):
        _generator(index).manual_seed(seed)


def seed() -> int:
    return _generator(None).seed()


def initial_seed() -> int:
    return _generator(None).initial_seed()


def get_rng_state(device: DeviceLike = None) -> torch.Tensor:
    return _generator(device).get_state()


def get_rng_state_all() -> list[torch.Tensor]:
    return [get_rng_state(index) for index in range(device_count())]


def set_rng_state(new_state: torch.Tensor, device: DeviceLike = None) -> None:
    _generator(device).set_state(new_state)


def set_rng_state_all(new_states: list[torch.Tensor]) -> None:
    for index, state in enumerate(new_states):
        set_rng_state(state, index)


def __getattr__(name: str) -> Any:
    if name == "default_generators":
        return tuple(_generator(index) for index in range(device_count()))
    raise AttributeError(f"module 'torch.sim' has no attribute {name!r}")
