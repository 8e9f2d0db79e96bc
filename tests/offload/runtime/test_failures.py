"""Exceptions anywhere leave nothing on the device and no wrong weights; threads may share a model."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.stores.disk.allocator import DiskAllocator
from diffusers_offload_plus.offload.stores.host import HostAllocator
from diffusers_offload_plus.offload.stores.shared.allocator import SharedAllocator
from diffusers_offload_plus.offload.transfer.copy_engine import CopyEngine
from tests.support.meter import Meter
from tests.support.models import (
    CHOSEN,
    Block,
    Coder,
    Pair,
    Stack,
    assert_plain,
    assert_same,
    attributes,
    held,
    noise,
    seeded,
)
from tests.support.policies import settings

pytestmark = [pytest.mark.parametrize("policy", CHOSEN)]


class Stop(Exception):
    """Raised on purpose."""


def assert_offloaded(pair: Pair) -> None:
    """Every parameter is on the host and nothing is lent."""
    assert all(p.device.type == "cpu" for p in pair.model.parameters())
    assert pair.component().peak_device_bytes < pair.size


class Trapped(nn.Linear):
    """Raises within its own forward, before or after it computes, while told to."""

    trap: type[BaseException] | None = None
    after = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.trap is not None and not self.after:
            raise self.trap
        x = super().forward(x)
        if self.trap is not None:
            raise self.trap
        return x


def trapped() -> nn.Module:
    """A stack whose linear layers are all trapped."""
    model = Stack()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Trapped(child.in_features, child.out_features))
    return seeded(lambda: model)


@contextlib.contextmanager
def raising(module: nn.Module, error: type[BaseException], *, after: bool = False) -> Iterator[None]:
    """Spring the trap of `module`."""
    assert isinstance(module, Trapped)
    module.trap, module.after = error, after
    try:
        yield
    finally:
        del module.trap, module.after


def held_by(meter: Meter) -> int:
    """Device bytes that are held now, by anything but garbage."""
    gc.collect()
    return meter.live


DEPTHS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "inlet": lambda m: m.inlet,
    "first_block": lambda m: m.blocks[0].up,
    "inside_a_block": lambda m: m.blocks[3].up,
    "end_of_a_block": lambda m: m.blocks[3].down,
    "outlet": lambda m: m.outlet,
}


@pytest.mark.parametrize(
    ("error", "depth", "after"),
    [
        *((Stop, depth, depth.startswith("end")) for depth in DEPTHS),
        (KeyboardInterrupt, "inside_a_block", False),
        (GeneratorExit, "inside_a_block", True),
    ],
)
def test_exception_in_forward(
    policy: str, error: type[BaseException], depth: str, after: bool, device: torch.device, meter: Meter
) -> None:
    pair = Pair(trapped(), device, policy)
    live = held_by(meter)
    for warm in range(2):  # the second time something is prefetched
        with raising(DEPTHS[depth](pair.model), error, after=after), torch.no_grad(), pytest.raises(error):
            pair.model(noise(device))
        if meter.exact:  # first, for looking at parameters ends what is under way
            assert held_by(meter) == live, f"bytes stay on the device after exception {warm}"
        assert_offloaded(pair)
        pair.agree(lambda m: m(noise(device)))
    pair.finish()


def test_exception_that_forward_itself_catches(policy: str, device: torch.device, meter: Meter) -> None:
    class Fragile(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = super().forward(x)
            if x.shape[0] == 4:
                raise Stop
            return x

    class Catching(Stack):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                try:
                    x = block(x) * 2
                except Stop:
                    x = self.inlet(x) + block(x[:2]).sum()
            return self.outlet(x)

    pair = Pair(seeded(lambda: Catching(block=Fragile)), device, policy)
    pair.agree(lambda m: m(noise(device)), passes=3)
    pair.finish()


def test_generator_is_closed_midway(policy: str, device: torch.device, meter: Meter) -> None:
    class Streaming(Stack):
        def forward(self, x: torch.Tensor) -> Iterator[torch.Tensor]:  # type: ignore[override]
            try:
                for block in self.blocks:
                    x = block(x)
                    yield x
            finally:
                self.inlet(x)

    pair = Pair(seeded(Streaming), device, policy)
    for _ in range(2):
        steps = pair.model(noise(device))
        with torch.no_grad():
            next(steps)
            next(steps)
            steps.close()
        pair.agree(lambda m: list(m(noise(device))))
    assert_offloaded(pair)
    pair.finish()


def test_disabling_right_after_an_exception(policy: str, device: torch.device, meter: Meter) -> None:
    pair = Pair(trapped(), device, policy)
    pair.agree(lambda m: m(noise(device)))
    with raising(pair.model.blocks[3].up, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        pair.model(noise(device))
    pair.finish()


def test_exception_inside_onloaded(policy: str, device: torch.device, meter: Meter) -> None:
    pair = Pair(seeded(Stack), device, policy)
    pair.agree(lambda m: m(noise(device)))

    def write_and_raise() -> None:
        with dop.onloaded(pair.model.blocks[1]):
            pair.model.blocks[1].up.weight.data.mul_(2)
            raise Stop

    with pytest.raises(Stop):
        write_and_raise()
    assert all(p.device.type == "cpu" for p in pair.model.parameters())
    pair.plain.blocks[1].up.weight.data.mul_(2)
    pair.agree(lambda m: m(noise(device)))
    pair.finish()


@pytest.mark.parametrize("number", [0, 4])
@pytest.mark.parametrize("warm", [False, True], ids=["first", "later"])
def test_out_of_memory_while_onloading(
    policy: str, number: int, warm: bool, device: torch.device, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair(seeded(Stack), device, policy)
    if warm:
        pair.agree(lambda m: m(noise(device)))
    start, done = CopyEngine.start, []

    def exhausted(link: CopyEngine, *args: Any, **kwargs: Any) -> Any:
        done.append(None)
        if len(done) > min(number, 3 if policy == "block-2-stream" else number):
            raise torch.OutOfMemoryError("no memory left")
        return start(link, *args, **kwargs)

    live = held_by(meter)
    monkeypatch.setattr(CopyEngine, "start", exhausted)
    with torch.no_grad(), pytest.raises(torch.OutOfMemoryError):
        pair.model(noise(device))
    monkeypatch.undo()
    if meter.exact:
        assert held_by(meter) == live
    assert_offloaded(pair)
    pair.agree(lambda m: m(noise(device)), passes=3)
    pair.finish()


@pytest.mark.parametrize("number", [0, 1, 3])
def test_enabling_fails_midway(
    policy: str, number: int, device: torch.device, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = seeded(Stack)
    model.register_buffer("table", torch.arange(3))
    before, tensors, found = {k: v.clone() for k, v in held(model).items()}, held(model), attributes(model)
    done: list[object] = []
    for allocator in (HostAllocator, SharedAllocator, DiskAllocator):

        def exhausted(self: Any, key: object, sources: Any, store: Any = allocator.store) -> Any:
            done.append(key)
            if len(done) == number + 1:
                raise RuntimeError("no host memory left")
            return store(self, key, sources)

        monkeypatch.setattr(allocator, "store", exhausted)
    with pytest.raises(RuntimeError, match="no host memory left"):
        dop.enable_group_offload(model, device, **settings(policy, model, device))
    monkeypatch.undo()
    after = held(model)
    assert all(after[name] is tensors[name] and torch.equal(after[name], before[name]) for name in before)
    assert all(tensor.device.type == "cpu" and not tensor.is_pinned() for tensor in after.values())
    assert attributes(model) == found
    assert_plain(model)
    with pytest.raises(dop.NotOffloadedError):
        dop.offload_report(model)
    pair = Pair(model, device, policy)
    pair.agree(lambda m: m(noise(device)))
    pair.finish()


# Threads


def in_threads(jobs: list[Callable[[], Any]], device: torch.device, times: int = 3) -> list[list[Any]]:
    """What each job returned, called `times` times in a thread of its own, all started together."""
    results: list[list[Any]] = [[] for _ in jobs]
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(jobs))

    def work(number: int) -> None:
        try:
            barrier.wait()
            for _ in range(times):
                with torch.no_grad():
                    results[number].append(jobs[number]().cpu())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "deadlock"
    assert not errors, errors
    return results


def test_eight_threads_call_one_model(policy: str, device: torch.device, meter: Meter) -> None:
    pair = Pair(seeded(Stack), device, policy)
    inputs = [noise(device, seed=seed) for seed in range(8)]
    with torch.no_grad():
        wanted = [pair.plain(x).cpu() for x in inputs]
    results = in_threads([lambda x=x: pair.model(x) for x in inputs], device)
    for got, want in zip(results, wanted, strict=True):
        assert len(got) == 3
        assert_same(got, [want] * 3)
    assert_offloaded(pair)
    pair.finish()


def test_threads_call_different_doors(policy: str, device: torch.device, meter: Meter) -> None:
    pair = Pair(seeded(Coder), device, policy)
    x = noise(device)
    calls: list[Callable[[nn.Module], torch.Tensor]] = [
        lambda m: m.encode(x),
        lambda m: m.decode(x),
        lambda m: m.encoder.blocks[2](x),
        lambda m: m.encoder.blocks[3](x),
        lambda m: m.decoder.blocks[0](x),
        lambda m: m(x),
    ]
    with torch.no_grad():
        wanted = [call(pair.plain).cpu() for call in calls]
    results = in_threads([lambda call=call: call(pair.model) for call in calls], device)
    for got, want in zip(results, wanted, strict=True):
        assert_same(got, [want] * 3)
    pair.finish()


def test_threads_while_one_of_them_fails(policy: str, device: torch.device, meter: Meter) -> None:
    class Picky(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[0] == 3:
                raise Stop
            return super().forward(x)

    pair = Pair(seeded(lambda: Stack(block=Picky)), device, policy)
    x = noise(device)
    with torch.no_grad():
        want = pair.plain(x).cpu()

    def fails() -> torch.Tensor:
        with pytest.raises(Stop):
            pair.model(x[:3])
        return x

    results = in_threads([fails, lambda: pair.model(x), fails, lambda: pair.model(x)], device)
    assert_same(results[1] + results[3], [want] * 6)
    pair.finish()


def test_one_thread_reads_the_state_while_others_run(policy: str, device: torch.device, meter: Meter) -> None:
    pair = Pair(seeded(Stack), device, policy)
    x = noise(device)
    with torch.no_grad():
        want = pair.plain(x).cpu()

    def save() -> torch.Tensor:
        for name, value in pair.model.state_dict().items():
            assert torch.equal(value.cpu(), pair.reference.state_dict()[name]), name
        return want

    results = in_threads([save, lambda: pair.model(x), save, lambda: pair.model(x)], device, times=5)
    assert_same([t for r in results for t in r], [want] * 20)
    pair.finish()
