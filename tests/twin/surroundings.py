"""What goes on around the passes of a twin: who holds what, which thread and stream calls, who runs out of memory."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable

import torch
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.hooks.attachment import attachment_of
from diffusers_offload_plus.offload.model.tensors import is_wrapper, plain_tensors
from tests.twin.machine import Twins, bits
from tests.twin.modules import Counting
from tests.twin.trees import Node

AROUND = ("hold", "write-held", "drop-held", "elsewhere", "cramped", "question")
"""Operations, besides those of :data:`.machine.OPERATIONS`."""

Named = dict[str, torch.Tensor]

HOLDS: dict[str, Callable[[nn.Module], Named]] = {
    "parameters": lambda model: dict(model.named_parameters()),
    "data": lambda model: {name: p.data for name, p in model.named_parameters()},
    "state dict": lambda model: dict(model.state_dict()),
    "views": lambda model: {name: p.detach().view(p.shape) for name, p in model.named_parameters()},
    "buffers": lambda model: dict(model.named_buffers()),
}


class Surrounded(Twins):
    """The twins, with everything that may surround their passes.

    Attributes:
        taken: tensors that somebody holds, of the model and of its twin, by name.
    """

    def start_over(self) -> None:
        super().start_over()
        self.taken: list[tuple[str, Named, Named]] = []

    # Who holds what

    @property
    def holds_memory(self) -> bool:
        """Whether something else than parameters is held."""
        return any(kind != "parameters" for kind, _, _ in self.taken)

    @precondition(lambda self: self.enabled and len(self.taken) < 3)
    @rule(kind=st.sampled_from(sorted(HOLDS)))
    def hold(self, kind: str) -> None:
        self.did("hold")
        mine, theirs = HOLDS[kind](self.model), HOLDS[kind](self.twin)
        if kind != "parameters":  # what is on the device is the weight only while that stays there
            mine = {name: t for name, t in mine.items() if all(p.device.type == "cpu" for _, p in plain_tensors(t))}
        self.taken.append((kind, mine, theirs))

    @precondition(lambda self: self.enabled and self.taken)
    @rule(which=st.integers(0, 9), number=st.integers(0, 200), quietly=st.booleans())
    def write_held(self, which: int, number: int, quietly: bool) -> None:
        self.did("write-held")
        _, mine, theirs = self.taken[which % len(self.taken)]
        names = sorted(name for name in mine if name in theirs)
        if not names:
            return
        name = names[number % len(names)]
        with torch.no_grad():
            pairs = zip(plain_tensors(mine[name]), plain_tensors(theirs[name]), strict=True)
            for (_, a), (_, b) in pairs:
                if a.is_floating_point() and not (a.numel() > 1 and 0 in a.stride()):
                    for t in (a, b):
                        (t.data if quietly else t).mul_(0.5)

    @precondition(lambda self: self.taken)
    @rule()
    def drop_held(self) -> None:
        self.did("drop-held")
        self.taken.pop()

    def moved(self) -> None:
        """Weights have been moved, as by ``.to``: what was taken before shows old memory."""
        self.taken.clear()

    # Who calls

    @precondition(lambda self: self.enabled)
    @rule(where=st.sampled_from(["thread", "stream", "thread and stream"]), inference=st.booleans())
    def elsewhere(self, where: str, inference: bool) -> None:
        """A pass on a stream that the engine has not seen, in a thread of its own, or both."""
        self.did("elsewhere")
        counts = any(isinstance(module, Counting) for module in self.model.modules())
        inference = inference and not counts
        if counts:
            where = "thread"  # on another stream, a buffer that is replaced would be a race without offloading too
        failed: list[BaseException] = []

        def call() -> None:
            with torch.inference_mode(inference), torch.no_grad():
                if "stream" not in where:
                    self.both(lambda model, x: model(x))
                    return
                current, stream = torch.accelerator.current_stream(self.device), torch.Stream(self.device)
                stream.wait_stream(current)
                with stream:
                    self.both(lambda model, x: model(x))
                current.wait_stream(stream)

        def guarded() -> None:
            try:
                call()
            except BaseException as error:  # it is raised where hypothesis sees it
                failed.append(error)

        if "thread" in where:
            thread = threading.Thread(target=guarded)
            thread.start()
            thread.join()
            if failed:
                raise failed[0]
        else:
            call()

    @precondition(lambda self: self.enabled and self.meter.exact)
    @rule(room=st.integers(0, 60))
    def cramped(self, room: int) -> None:
        """A pass on a device that has little memory left is right, or raises and loses nothing."""
        from tests.simulated import capacity, stats

        self.did("cramped")
        x = self.input()
        before = {name: bits(t) for name, p in self.twin.named_parameters() for _, t in plain_tensors(p)}
        with capacity(stats().live + room * 512), torch.no_grad():
            try:
                got = bits(self.model(x.clone()))
            except (torch.OutOfMemoryError, dop.BudgetExceededError):
                got = None
        if got is not None:
            with torch.no_grad():
                assert torch.equal(got, bits(self.twin(x.clone())))
            return
        after = {name: bits(t) for name, p in self.model.named_parameters() for _, t in plain_tensors(p)}
        assert all(torch.equal(after[name], value) for name, value in before.items())
        # Forward had begun, and buffers count.
        self.twin = copy.deepcopy(self.model).to(self.device)
        self.moved()

    @precondition(lambda self: self.enabled)
    @rule(number=st.integers(0, 200))
    def question(self, number: int) -> None:
        """What only asks about weights moves none."""
        self.did("question")
        engine = attachment_of(self.model).engine  # type: ignore[union-attr]
        copies, evictions = engine.copy_engine.copies, engine.budget.evictions
        assert next(self.model.parameters()).dtype == next(self.twin.parameters()).dtype
        assert self.model.head.weight.shape == self.twin.head.weight.shape
        assert self.model.entry.bias is not None
        assert (engine.copy_engine.copies, engine.budget.evictions) == (copies, evictions)

    # Training

    def can_train(self) -> bool:
        """Whether gradients can be compared: a weight that a pass uses several times has its gradient added up in
        another order than without offloading."""

        def repeats(node: Node) -> bool:
            return node.times > 1 or any(map(repeats, node.children))

        plain = all(type(p) is nn.Parameter and not is_wrapper(p) for p in self.twin.parameters())
        kinds = self.recipe.kinds | {type(module).__name__.lower() for module in self.model.modules()}
        unfit = {"counting", "normed", "strided", "shared", "tied", "reading", "attending"}
        return plain and not kinds & unfit and not any(map(repeats, (*self.recipe.blocks, *self.recipe.tail)))

    @precondition(lambda self: self.enabled and self.can_train())
    @rule(in_backward=st.booleans(), onloaded=st.booleans())
    def train(self, in_backward: bool, onloaded: bool) -> None:
        """A step of gradient descent, after backward or inside of it, and inside of ``onloaded`` where that fits."""
        self.did("train")
        onloaded = onloaded and "vram_budget" not in self.settings_of(self.policy)
        x = self.input()
        for model in (self.model, self.twin):
            trained = [p for p in model.parameters() if p.requires_grad]
            handles = [p.register_post_accumulate_grad_hook(_step) for p in trained] if in_backward else []
            try:
                if onloaded and model is self.model:
                    with dop.onloaded(model):
                        model(x.clone()).square().mean().backward()
                else:
                    model(x.clone()).square().mean().backward()
            except dop.BudgetExceededError:
                for handle in handles:
                    handle.remove()
                self.model.zero_grad()
                self.widen()
                self.moved()
                return
            for handle in handles:
                handle.remove()
            for parameter in trained:
                if parameter.grad is not None:
                    assert not in_backward
                    _step(parameter)

    # Lifetimes

    def teardown(self) -> None:
        if not hasattr(self, "model"):
            return
        self.taken.clear()
        if self.seed % 3 or not self.enabled:
            super().teardown()
            return
        alive = weakref.ref(self.model)  # dropped while it is offloaded
        self.held.clear()
        del self.model, self.twin
        super().teardown()
        assert alive() is None


def _step(parameter: nn.Parameter) -> None:
    with torch.no_grad():
        assert parameter.grad is not None
        parameter.sub_(parameter.grad, alpha=0.05)
        parameter.grad = None
