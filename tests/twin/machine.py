"""A random model beside an un-offloaded deep copy on the same device: whatever is done to both, they must agree."""

from __future__ import annotations

import collections
import copy
import gc
from typing import Any

import torch
from hypothesis import currently_in_test_context, note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.hooks.attachment import attachment_of
from diffusers_offload_plus.offload.model.inventory import Residency
from diffusers_offload_plus.offload.model.tensors import plain_tensors
from tests.support.meter import Meter
from tests.support.models import nbytes
from tests.support.policies import DIRECTORY, POLICIES
from tests.twin import trees
from tests.twin.modules import CONDITIONS, ROWS, WIDTH, Counting, Dense, Failure, Model, Scale

COVERAGE: collections.Counter[tuple[str, str, str]] = collections.Counter()
OPERATIONS = (
    "enable", "replan", "forward", "forward-grad", "skipping", "failing", "interrupted", "part", "encode", "edit",
    "edit-data", "repoint", "load", "cast", "add", "remove", "replace", "save", "copy", "onloaded", "disable",
)  # fmt: skip
TIERS = ("host", "pinned host", "staged host", "disk", "disk and host", "kept", "partly kept")
LEVELS = ("block_level", "leaf_level")

HALF = "half of the model"  # a budget of host memory, put in when the model is there
CHOSEN = {
    **{name: settings for name, settings in POLICIES.items() if "vram_budget" not in settings},
    "kept-block": {"vram_budget": "all"},
    "kept-leaf": {"vram_budget": "all", "offload_type": "leaf_level"},
    "partly-block": {"vram_budget": "part"},
    "partly-leaf": {"vram_budget": "part", "offload_type": "leaf_level"},
    "auto-block": {"vram_budget": "auto"},
    "auto-leaf": {"vram_budget": "auto", "offload_type": "leaf_level"},
    "disk-leaf": {"offload_type": "leaf_level", "offload_to_disk_path": DIRECTORY},
    "disk-block-stream-budget": {
        "use_stream": True, "offload_to_disk_path": DIRECTORY, "host_budget": HALF, "offload_type": "block_level",
    },
    "disk-block-budget": {"offload_to_disk_path": DIRECTORY, "host_budget": HALF, "offload_type": "block_level"},
    "disk-leaf-budget": {"offload_to_disk_path": DIRECTORY, "host_budget": HALF, "offload_type": "leaf_level"},
}  # fmt: skip

# Where a piece reads another's weight without calling it, or is entered twice by way of sharing, calls do not follow
# the tree.
UNBOUND = {"reading", "shared", "attending"}


def state_bits(model: nn.Module) -> dict[str, list[torch.Tensor]]:
    """Every tensor of ``model``, persistent or not, as bytes on the CPU."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: [bits(t) for _, t in plain_tensors(tensor)] for name, tensor in named}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The values of ``tensor`` as bytes on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).clone()


def budget(model: nn.Module, part: str) -> int:
    """Device bytes for all of ``model`` and what may be added to it, or for some of it."""
    total, blocks = nbytes(model), [nbytes(block) for block in model.children()]
    return 20_000 + 6 * total if part == "all" else 2_000 + total // 3 + 2 * max(blocks, default=0)


class Twins(RuleBasedStateMachine):
    """The state machine. ``device`` and ``meter`` are set by the test that runs it."""

    device: torch.device
    meter: Meter

    @initialize(
        recipe=trees.recipes, policy=st.sampled_from(sorted(CHOSEN)), holds=st.booleans(), inference=st.booleans()
    )
    def start(self, recipe: trees.Recipe, policy: str, holds: bool = True, inference: bool = False) -> None:
        """Build both.

        Args:
            holds: somebody holds all parameters of the model all the time.
            inference: it is made in inference mode.
        """
        gc.collect()
        self.meter.reset()
        self.recipe = recipe
        self.holds = holds
        self.model: Model = trees.build(recipe)
        self.twin: Model = copy.deepcopy(self.model).to(self.device)
        if inference:
            with torch.inference_mode():
                self.model = copy.deepcopy(self.model)
        self.start_over()
        self.pinned = self.meter.pinned
        self.look()
        self.looks = 0
        self.dtype = torch.float32
        self.seed = 0
        self.followed_tree = not (recipe.kinds & UNBOUND)
        self.unseen = False
        self.cell = ("", "")
        self.enable(policy)

    @property
    def holds_memory(self) -> bool:
        """Whether somebody holds memory of weights, so that these travel in each pass."""
        return False

    def start_over(self) -> None:
        """What extensions keep of a sequence begins anew."""

    def moved(self) -> None:
        """Weights have been moved, as by ``.to``."""

    # Helpers

    def did(self, operation: str) -> None:
        COVERAGE[operation, *self.cell] += 1
        if currently_in_test_context():
            note(operation)

    def input(self) -> torch.Tensor:
        self.seed += 1
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(ROWS, WIDTH, generator=generator).to(self.device, self.dtype)

    def look(self) -> None:
        """What the user holds on to, without asking the model again: that would bring weights home."""
        named = dict(self.model.named_parameters())
        self.identity = {name: id(p) for name, p in named.items()}
        self.names = list(named)
        self.held = named if self.holds else {}

    def both(self, call: Any) -> None:
        x = self.input()
        try:
            got = call(self.model, x.clone())
        except dop.BudgetExceededError:
            self.widen()
            return
        want = call(self.twin, x.clone())
        assert torch.equal(bits(got), bits(want)), f"outputs differ by {(got.cpu() - want.cpu()).abs().max()}"

    def widen(self) -> None:
        """A part of the model did not fit: no parameter is lost, and a larger budget serves."""
        assert self.policy.startswith("partly"), "a budget that has room for all was exceeded"
        self.did("exceeded")
        for name, parameter in self.model.named_parameters():
            assert torch.equal(bits(parameter), bits(self.twin.get_parameter(name))), f"{name} is lost"
        self.enable(self.policy.replace("partly", "kept"))
        self.twin = copy.deepcopy(self.model).to(self.device)  # forward had begun, and buffers count

    def pick(self, number: int) -> tuple[str, nn.Parameter]:
        name = self.names[number % len(self.names)]
        return name, self.held[name] if self.holds else self.model.get_parameter(name)

    @property
    def enabled(self) -> bool:
        return attachment_of(self.model) is not None

    # Residency

    @staticmethod
    def settings_of(policy: str) -> dict[str, Any]:
        return dict(CHOSEN[policy])

    def enable(self, policy: str) -> None:
        self.moved()
        self.policy = policy
        settings = self.settings_of(policy)
        if settings.get("vram_budget") in ("all", "part"):
            settings["vram_budget"] = budget(self.model, settings["vram_budget"])
        if settings.get("host_budget") == HALF:
            settings["host_budget"] = max(1024, sum(t.nbytes for t in self.tensors(self.model)) // 2)
        dop.enable_group_offload(self.model, self.device, **settings)
        report = dop.offload_report(self.model).components[0]
        tier = report.tier.removeprefix("shared ")
        if "disk" in tier and "host" in tier:
            tier = "disk and host"
        if CHOSEN[policy].get("low_cpu_mem_usage"):
            tier = "staged host"
        if "vram_budget" in settings:
            tier = "partly kept" if policy.startswith("partly") else "kept"
        self.cell = (tier, report.offload_type)

    @precondition(lambda self: not self.enabled)
    @rule(policy=st.sampled_from(sorted(CHOSEN)))
    def enable_again(self, policy: str) -> None:
        self.enable(policy)
        self.did("enable")

    @precondition(lambda self: self.enabled)
    @rule(policy=st.sampled_from(sorted(CHOSEN)))
    def replan(self, policy: str) -> None:
        self.did("replan")
        self.enable(policy)

    @precondition(lambda self: self.enabled)
    @rule()
    def disable(self) -> None:
        self.did("disable")
        self.moved()
        dop.disable_group_offload(self.model)
        gc.collect()
        held = {s.data_ptr(): s.nbytes() for s in self.storages(self.twin)}
        assert self.meter.live <= sum(held.values()), "device memory is still held after disable"
        assert all(t.device.type == "cpu" for t in self.tensors(self.model))
        assert self.meter.pinned == self.pinned or not self.meter.exact, "pinned memory is still held after disable"

    @staticmethod
    def tensors(model: nn.Module) -> list[torch.Tensor]:
        return [t for tensor in (*model.parameters(), *model.buffers()) for _, t in plain_tensors(tensor)]

    def storages(self, model: nn.Module) -> list[torch.UntypedStorage]:
        return [t.untyped_storage() for t in self.tensors(model)]

    # ForwardPass

    @precondition(lambda self: self.enabled)
    @rule()
    def forward(self) -> None:
        self.did("forward")
        with torch.no_grad():
            # Whatever was changed before is settled now; with "auto" one more pass measures, and one knows its limit.
            for _ in range(3 if self.policy.startswith("auto") else 1):
                self.both(lambda model, x: model(x))
            engine = attachment_of(self.model).engine  # type: ignore[union-attr]
            copies, engine.copy_engine.peak = engine.copy_engine.copies, engine.copy_engine.usage.live
            self.both(lambda model, x: model(x))
        assert engine.copy_engine.copies > copies or engine.plan.streamed_bytes == 0
        if self.policy.startswith("kept"):
            assert engine.plan.streamed_bytes == 0
        if self.policy.startswith("kept") and not self.holds_memory:
            assert engine.copy_engine.copies == copies, "what is kept travelled again"
        elif self.followed_tree:
            assert engine.copy_engine.peak <= engine.plan.device_bound, "more on the device than the plan promises"

    @precondition(lambda self: self.enabled)
    @rule()
    def forward_grad(self) -> None:
        self.did("forward-grad")
        self.both(lambda model, x: model(x).detach())

    @precondition(lambda self: self.enabled)
    @rule(skip=st.frozensets(st.integers(0, 4), max_size=3), inference=st.booleans())
    def skipping(self, skip: frozenset[int], inference: bool) -> None:
        self.did("skipping")
        # A buffer reassigned in inference mode could not be written outside of it, offloaded or not.
        inference = inference and not any(isinstance(module, Counting) for module in self.model.modules())
        with torch.inference_mode(inference), torch.no_grad(), CONDITIONS.set(skip=skip):
            self.both(lambda model, x: model(x))

    @precondition(lambda self: self.enabled)
    @rule(at=st.integers(1, 6), error=st.sampled_from([Failure, KeyboardInterrupt, ValueError]))
    def failing(self, at: int, error: type[BaseException]) -> None:
        self.did("failing" if error is not KeyboardInterrupt else "interrupted")
        x = self.input()
        results: list[Any] = []
        for model in (self.model, self.twin):
            with torch.no_grad(), CONDITIONS.set(fail_at=at, error=error):
                try:
                    results.append(bits(model(x)))
                except error as raised:
                    results.append(type(raised))
                except dop.BudgetExceededError:
                    self.widen()
                    return
        got, want = results
        assert got is want if isinstance(want, type) else torch.equal(got, want)

    @precondition(lambda self: self.enabled)
    @rule(number=st.integers(0, 200))
    def part(self, number: int) -> None:
        self.did("part")
        parts = [
            name for name, module in self.model.named_modules() if name and type(module).__module__ == Dense.__module__
        ]
        name = parts[number % len(parts)] if parts else "blocks.0"
        with torch.no_grad():
            if self.unseen:  # a block no pass has met is on the host, as the user put it there
                self.both(lambda model, x: model(x))
                self.unseen = False
            self.both(lambda model, x: model.get_submodule(name)(x))

    @precondition(lambda self: self.enabled)
    @rule()
    def encode(self) -> None:
        self.did("encode")
        with torch.no_grad():
            self.both(lambda model, x: model.encode(x))

    # Changes by the user

    def write(self, number: int, change: Any) -> None:
        name, mine = self.pick(number)
        theirs = self.twin.get_parameter(name)
        for (_, a), (_, b) in zip(plain_tensors(mine), plain_tensors(theirs), strict=True):
            if a.is_floating_point() and not (a.numel() > 1 and 0 in a.stride()):
                change(a)
                change(b)

    @precondition(lambda self: self.enabled)
    @rule(number=st.integers(0, 200))
    def edit(self, number: int) -> None:
        self.did("edit")
        with torch.no_grad():
            self.write(number, lambda t: t.mul_(0.5))

    @precondition(lambda self: self.enabled)
    @rule(number=st.integers(0, 200))
    def edit_data(self, number: int) -> None:
        self.did("edit-data")
        self.write(number, lambda t: t.data.add_(0.25))

    @precondition(lambda self: self.enabled)
    @rule(number=st.integers(0, 200))
    def repoint(self, number: int) -> None:
        self.did("repoint")
        self.moved()
        name, mine = self.pick(number)
        if type(mine) is nn.Parameter:
            theirs = self.twin.get_parameter(name)
            mine.data = mine.data.clone() * 0.5
            theirs.data = theirs.data.clone() * 0.5

    @precondition(lambda self: self.enabled)
    @rule(number=st.integers(0, 200), quietly=st.booleans())
    def write_onloaded(self, number: int, quietly: bool) -> None:
        self.did("onloaded")
        try:
            with dop.onloaded(self.model), torch.no_grad():
                assert all(t.device == self.device for t in self.tensors(self.model) if t.numel())
                self.write(number, (lambda t: t.data.mul_(0.5)) if quietly else (lambda t: t.mul_(0.5)))
        except dop.BudgetExceededError:
            self.widen()

    @precondition(lambda self: self.enabled and "wrapped" not in self.recipe.kinds)
    @rule()
    def load(self) -> None:
        self.did("load")
        state = {name: value.detach().cpu().clone() for name, value in self.twin.state_dict().items()}
        for value in state.values():
            if value.is_floating_point() and type(value) is torch.Tensor:
                value.mul_(0.75)
        if any(type(value) is not torch.Tensor for value in state.values()) or "strided" in self.recipe.kinds:
            state = {
                name: value for name, value in state.items() if type(value) is torch.Tensor and "wide" not in name
            }
        self.model.load_state_dict(state, strict=False)
        self.twin.load_state_dict(state, strict=False)

    @precondition(lambda self: self.enabled and not self.recipe.kinds & {"int8", "wrapped", "strided"})
    @rule()
    def cast(self) -> None:
        self.did("cast")
        self.moved()
        self.dtype = torch.float64 if self.dtype is torch.float32 else torch.float32
        self.model.to(self.dtype)
        self.twin.to(self.dtype)

    def reapply(self) -> None:
        from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading

        self.moved()
        _maybe_remove_and_reapply_group_offloading(self.model)
        stock = [m for m in self.model.modules() if "GroupOffloadingHook" in repr(getattr(m, "_diffusers_hook", ""))]
        assert not stock, "diffusers applied hooks of its own"

    @precondition(lambda self: self.enabled and len(self.model.blocks) < 6)
    @rule(kind=st.sampled_from([Dense, Scale, Counting]), reapply=st.booleans())
    def add(self, kind: type[nn.Module], reapply: bool) -> None:
        self.did("add")
        self.moved()
        block = kind().to(self.dtype)
        self.model.blocks.append(block)
        self.twin.blocks.append(copy.deepcopy(block).to(self.device))
        self.unseen = not reapply
        if reapply:
            self.reapply()
        self.look()

    # What is read but no longer part of the model is nobody's to move.
    @precondition(lambda self: self.enabled and len(self.model.blocks) > 1 and "reading" not in self.recipe.kinds)
    @rule(number=st.integers(1, 9), reapply=st.booleans())
    def remove(self, number: int, reapply: bool) -> None:
        self.did("remove")
        self.moved()
        index = number % len(self.model.blocks)
        if index:
            del self.model.blocks[index]
            del self.twin.blocks[index]
        if reapply:
            self.reapply()
        self.look()

    @precondition(lambda self: self.enabled)
    @rule()
    def replace(self) -> None:
        self.did("replace")
        fresh = nn.Linear(WIDTH, WIDTH, dtype=self.dtype)
        self.twin.head = copy.deepcopy(fresh).to(self.device)
        self.model.head = fresh
        self.reapply()
        self.look()

    # Looking

    @precondition(lambda self: self.enabled)
    @rule()
    def save(self) -> None:
        self.did("save")
        mine, theirs = self.model.state_dict(), self.twin.state_dict()
        assert list(mine) == list(theirs)

    @precondition(lambda self: self.enabled)
    @rule()
    def deepcopy(self) -> None:
        self.did("copy")
        duplicate = copy.deepcopy(self.model)
        assert type(duplicate) is Model
        assert not any(hasattr(module, "_diffusers_hook") for module in duplicate.modules())
        mine, theirs = state_bits(duplicate), state_bits(self.twin)
        assert all(all(map(torch.equal, mine[name], theirs[name])) for name in theirs)

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "model"):
            return
        assert self.meter.races == 0, self.meter.race_log
        budgeted = self.enabled and "vram_budget" in CHOSEN[self.policy]
        self.looks += 1
        if not budgeted or self.looks % 3 == 0:
            self.agree_in_state()
        if budgeted:
            engine = attachment_of(self.model).engine  # type: ignore[union-attr]
            shared = engine.budget
            # A limit of "auto" is one for passes: what is read outside of them has to come, however little it allows.
            used = shared.used - (engine._device_copies.nbytes if shared.auto else 0)
            assert used <= shared.limit, f"{used} bytes on the device, of {shared.limit}"
            assert shared.peak <= shared.limit or shared.auto, "there was more on the device than the budget allows"
        elif self.enabled:
            engine = attachment_of(self.model).engine  # type: ignore[union-attr]
            resident = sum(g.device_bytes for g in engine.groups if g.spec.residency is Residency.RESIDENT)
            lent = engine._device_copies.nbytes  # to a method other than forward, until the next pass
            assert engine.copy_engine.usage.live == resident + engine.persistent.nbytes + lent, (
                "something that streams stayed on the device"
            )

    def agree_in_state(self) -> None:
        mine, theirs = state_bits(self.model), state_bits(self.twin)
        assert list(mine) == list(theirs)
        for name in theirs:
            assert all(map(torch.equal, mine[name], theirs[name])), f"{name} differs"
        assert self.identity == {name: id(p) for name, p in self.model.named_parameters()}, "a parameter was replaced"

    def teardown(self) -> None:
        if hasattr(self, "model") and self.enabled:
            self.disable()
        for name in ("model", "twin"):
            self.__dict__.pop(name, None)
        gc.collect()
        assert self.meter.leaked == 0, f"{self.meter.leaked} device bytes leaked"
