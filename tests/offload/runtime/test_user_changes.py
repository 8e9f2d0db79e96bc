"""Whatever the user does to an offloaded model's weights is what the next forward computes with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from tests.support.models import BUDGETED, WIDTH, Block, Language, Pair, Stack, assert_same, noise, seeded, tokens
from tests.zoo.models import MODELS

pytestmark = [pytest.mark.usefixtures("meter"), pytest.mark.parametrize("policy", BUDGETED)]


def other(like: nn.Module) -> nn.Module:
    """A model of the same shapes and other weights, on the host."""
    return seeded(type(like), seed=1)


@torch.no_grad()
def in_place(m: nn.Module) -> None:
    m.blocks[2].up.weight.mul_(1.5)
    m.inlet.bias.add_(1.0)


def data_assigned(m: nn.Module) -> None:
    m.blocks[2].up.weight.data = m.blocks[2].up.weight.data * 1.5
    m.outlet.weight.data = torch.ones(WIDTH, WIDTH)


def data_in_place(m: nn.Module) -> None:
    m.blocks[2].up.weight.data.add_(1.0)
    m.blocks[5].down.bias.data.fill_(0.5)
    m.blocks[0].up.weight.data[3:5] *= -1


def through_iteration(m: nn.Module) -> None:
    for p in m.parameters():
        p.data.mul_(0.9)


def through_state_dict(m: nn.Module) -> None:
    for value in m.state_dict().values():
        value.mul_(0.9)


def load_state(m: nn.Module) -> None:
    m.load_state_dict(other(m).state_dict())


def load_state_assign(m: nn.Module) -> None:
    m.load_state_dict(other(m).state_dict(), assign=True)


def load_into_block(m: nn.Module) -> None:
    m.blocks[3].load_state_dict(other(m).blocks[1].state_dict())


def averaged(m: nn.Module) -> None:
    kept = {p: p.detach().clone() for p in m.parameters()}  # keyed by Parameter, as EMA holders are
    for mean in kept.values():
        mean.lerp_(torch.ones_like(mean), 0.1)
    for p in m.parameters():
        p.data.copy_(kept[p])


def averaged_model(m: nn.Module) -> None:
    mean = torch.optim.swa_utils.AveragedModel(m, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    mean.update_parameters(m)
    mean.update_parameters(other(m))
    m.load_state_dict(mean.module.state_dict())


def stepped(optimiser: Callable[..., torch.optim.Optimizer]) -> Callable[[nn.Module], None]:
    def step(m: nn.Module) -> None:
        chosen = optimiser(m.parameters())
        for number in range(2):
            for p in m.parameters():
                p.grad = torch.full_like(p, 0.1 + number)
            chosen.step()
        chosen.zero_grad()

    return step


def parameter_replaced(m: nn.Module) -> None:
    m.blocks[1].up.weight = nn.Parameter(m.blocks[1].up.weight.detach() * 2)
    m.blocks[4].down.register_parameter("bias", None)
    del m.blocks[5].norm.weight
    m.blocks[5].norm.weight = nn.Parameter(torch.full((WIDTH,), 0.5))


def module_replaced(m: nn.Module) -> None:
    m.blocks[1] = seeded(Block, seed=5)
    m.blocks[4].up = seeded(lambda: nn.Linear(WIDTH, 2 * WIDTH), seed=6)
    m.outlet = nn.Identity()


def modules_added(m: nn.Module) -> None:
    m.blocks.append(seeded(Block, seed=5))
    m.blocks.insert(0, seeded(Block, seed=6))
    m.blocks[3].down = nn.Sequential(m.blocks[3].down, seeded(lambda: nn.Linear(WIDTH, WIDTH), seed=7))


def modules_removed(m: nn.Module) -> None:
    del m.blocks[2]
    m.blocks[1].up = nn.Sequential(m.blocks[1].up)
    m.blocks[3].norm = nn.Identity()


def blocks_swapped(m: nn.Module) -> None:
    m.blocks[0], m.blocks[5] = m.blocks[5], m.blocks[0]


def tied(m: nn.Module) -> None:
    m.blocks[0].up.weight = m.blocks[5].up.weight


def exchanged(m: nn.Module) -> None:
    a, b = m.blocks[0].up.weight, m.blocks[5].up.weight
    a.data, b.data = b.data, a.data


def aliased(m: nn.Module) -> None:
    m.blocks[0].up.weight.data = m.blocks[5].up.weight.data


def transposed(m: nn.Module) -> None:
    m.inlet.weight.data = m.inlet.weight.data.t()


def narrowed(m: nn.Module) -> None:
    block = m.blocks[2]
    for layer in (block.up.weight, block.up.bias):
        layer.data = layer.data[:WIDTH]
    block.down.weight.data = block.down.weight.data[:, :WIDTH]


def weight_normed(m: nn.Module) -> None:
    torch.nn.utils.parametrizations.weight_norm(m.blocks[1].up)


def hook_normed(m: nn.Module) -> None:
    torch.nn.utils.weight_norm(m.blocks[1].up)


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    change.__name__: change
    for change in (
        in_place,
        data_assigned,
        data_in_place,
        through_iteration,
        through_state_dict,
        load_state,
        load_state_assign,
        load_into_block,
        averaged,
        averaged_model,
        parameter_replaced,
        module_replaced,
        modules_added,
        modules_removed,
        blocks_swapped,
        tied,
        exchanged,
        aliased,
        transposed,
        narrowed,
        weight_normed,
    )
} | {
    "fused_adamw": stepped(lambda p: torch.optim.AdamW(p, lr=0.1, fused=True)),
    "foreach_adamw": stepped(lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True)),
    "sgd": stepped(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    "frozen": lambda m: m.requires_grad_(False),
}


@pytest.mark.parametrize("name", CHANGES)
def test_change_between_passes(policy: str, name: str, device: torch.device) -> None:
    pair = Pair(seeded(Stack), device, policy)
    pair.agree(lambda m: m(noise(device)))
    before = pair.plain(noise(device))
    pair.change(CHANGES[name])
    pair.agree(lambda m: m(noise(device)))
    if name not in ("frozen", "weight_normed"):
        assert not torch.equal(before, pair.plain(noise(device))), "the change was meant to matter"
    pair.finish(tidy=False)


@pytest.mark.parametrize(
    "name", ["in_place", "data_in_place", "data_assigned", "load_state_assign", "module_replaced"]
)
def test_change_before_the_first_pass_and_again(policy: str, name: str, device: torch.device) -> None:
    pair = Pair(seeded(Stack), device, policy)
    pair.change(CHANGES[name])
    pair.same_state()
    pair.change(CHANGES["sgd"])
    pair.agree(lambda m: m(noise(device)))
    pair.change(CHANGES[name])
    pair.finish(tidy=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtype(policy: str, dtype: torch.dtype, device: torch.device) -> None:
    pair = Pair(seeded(Stack), device, policy)
    pair.agree(lambda m: m(noise(device)))
    pair.change(lambda m: m.to(dtype))
    pair.agree(lambda m: m(noise(device).to(dtype)))
    pair.change(lambda m: m.float())
    pair.agree(lambda m: m(noise(device)))
    pair.change(lambda m: m.blocks[2].half())
    pair.change(lambda m: m.blocks[2].float())
    pair.agree(lambda m: m(noise(device)))
    pair.finish(saves=dtype.itemsize == 2)


def test_the_same_bytes_as_another_dtype(policy: str, device: torch.device) -> None:
    def reread(m: nn.Module) -> None:
        for p in m.parameters():
            p.data = p.data.view(torch.float16)

    pair = Pair(seeded(Stack).bfloat16(), device, policy)
    pair.agree(lambda m: m(noise(device).bfloat16()))
    pair.change(reread)
    pair.agree(lambda m: m(noise(device).half()))
    pair.finish(tidy=False)


def test_what_was_empty_gets_values(policy: str, device: torch.device) -> None:
    class Extended(Block):
        def __init__(self) -> None:
            super().__init__()
            self.more = nn.Parameter(torch.empty(0, WIDTH))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.cat([x, self.more]))

    pair = Pair(seeded(lambda: Stack(block=Extended)), device, policy)
    pair.agree(lambda m: m(noise(device)))
    pair.change(lambda m: setattr(m.blocks[3].more, "data", torch.ones(2, WIDTH)))
    pair.agree(lambda m: m(noise(device)))
    pair.finish(tidy=False)


def test_weight_norm_by_a_forward_pre_hook(policy: str, device: torch.device) -> None:
    model = seeded(Stack)
    with pytest.warns(FutureWarning):
        hook_normed(model)
    with torch.no_grad():
        model.blocks[1].up(noise("cpu"))  # the derived weight is no graph's any more, so the model can be copied
    pair = Pair(model, device, policy)
    pair.agree(lambda m: m(noise(device)))
    dop.disable_group_offload(model)


def test_parametrized_before_enabling_and_changed(policy: str, device: torch.device) -> None:
    model = seeded(Stack)
    weight_normed(model)
    torch.nn.utils.parametrizations.spectral_norm(model.blocks[3].down)
    pair = Pair(model, device, policy)
    pair.agree(lambda m: m(noise(device)))
    with torch.no_grad():
        pair.change(lambda m: m.blocks[1].up.parametrizations.weight.original0.mul_(2))
    pair.agree(lambda m: m(noise(device)))
    pair.finish()


def test_tied_weights_are_tied_anew(policy: str, device: torch.device) -> None:
    pair = Pair(seeded(Language), device, policy)
    pair.agree(lambda m: m(tokens(device)))
    pair.change(lambda m: setattr(m.embed, "weight", nn.Parameter(m.embed.weight.detach() * 2)))
    pair.agree(lambda m: m(tokens(device)))
    pair.change(lambda m: setattr(m.head, "weight", m.embed.weight))
    pair.agree(lambda m: m(tokens(device)))
    pair.finish(saves=False)
    assert pair.model.head.weight is pair.model.embed.weight


# Inside onloaded, and in the middle of a pass


def repoint(m: nn.Module) -> None:
    weight = m.blocks[2].up.weight
    weight.data = torch.full_like(weight, 0.25)


def replace(m: nn.Module) -> None:
    m.blocks[2].up.weight = nn.Parameter(torch.full_like(m.blocks[2].up.weight, 0.25))


@pytest.mark.parametrize("change", [in_place, data_in_place, repoint, replace, load_state, through_iteration])
@pytest.mark.parametrize("whole", [True, False], ids=["model", "block"])
def test_change_inside_onloaded_is_kept(
    policy: str, whole: bool, change: Callable[[nn.Module], None], device: torch.device
) -> None:
    pair = Pair(seeded(Stack), device, policy)
    pair.agree(lambda m: m(noise(device)))
    if policy == "half":  # what is held as a whole does not fit
        with pytest.raises(dop.BudgetExceededError, match="vram_budget"), dop.onloaded(pair.model):
            raise AssertionError("twice the budget was onloaded")
        pair.agree(lambda m: m(noise(device)))
        pair.finish()
        return
    with dop.onloaded(pair.model if whole else pair.model.blocks[2]):
        assert pair.model.blocks[2].up.weight.device == device
        pair.change(change)
        pair.agree(lambda m: m(noise(device)))
    pair.same_state()
    pair.agree(lambda m: m(noise(device)))
    pair.finish(saves=False)


@pytest.mark.parametrize("how", ["in_place", "data", "iterated", "assigned", "repointed"])
def test_change_of_the_next_block_while_its_copy_is_under_way(policy: str, how: str, device: torch.device) -> None:
    policy = "block-stream" if policy == "block" else policy
    pair = Pair(seeded(Stack), device, policy)
    pair.agree(lambda m: m(noise(device)))  # from now on the next block is prefetched

    def changes_next(layer: nn.Module, args: object, output: object) -> None:
        root = pair.model if layer is pair.model.blocks[3].down else pair.plain
        norm = root.blocks[4].norm
        with torch.no_grad():
            if how == "in_place":
                norm.weight.add_(0.1)
            elif how == "data":
                norm.weight.data.add_(0.1)
            elif how == "assigned":
                norm.weight = nn.Parameter(norm.weight.detach() + 0.1)
            elif how == "repointed":
                norm.weight.data = norm.weight.data + 0.1
            else:
                for parameter in norm.parameters():
                    parameter.add_(0.1)

    handles = [root.blocks[3].down.register_forward_hook(changes_next) for root in (pair.model, pair.plain)]
    pair.agree(lambda m: m(noise(device)), passes=3)
    for handle in handles:
        handle.remove()
    pair.finish()


@pytest.mark.parametrize("change", [in_place, data_in_place, data_assigned, load_state, through_iteration])
def test_change_right_after_a_pass_that_may_still_run(
    policy: str, change: Callable[[nn.Module], None], device: torch.device
) -> None:
    pair = Pair(seeded(Stack), device, policy)
    want = pair.plain(noise(device)).detach().cpu()
    x = noise(device)
    for _ in range(2):
        with torch.no_grad():
            got = pair.model(x)
    change(pair.model)  # nothing has waited for the device
    assert_same(got, want)
    change(pair.reference)
    pair.plain = copy.deepcopy(pair.reference).to(device)
    pair.agree(lambda m: m(x))
    pair.finish()


@pytest.mark.parametrize("change", [in_place, data_in_place, data_assigned, load_state])
def test_change_after_a_read_outside_any_pass(
    policy: str, change: Callable[[nn.Module], None], device: torch.device
) -> None:
    pair = Pair(seeded(Stack), device, policy)
    pair.agree(lambda m: m(noise(device)))
    pair.agree(lambda m: m.blocks[2].up(noise(device)))  # at block level no hook sees this call
    pair.change(change)
    pair.same_state()
    pair.agree(lambda m: m.blocks[2].up(noise(device)))
    pair.agree(lambda m: m(noise(device)))
    pair.finish(saves=False)


@pytest.mark.parametrize("how", ["in_place", "data", "assigned", "repointed"])
def test_forward_changes_its_own_weight(policy: str, how: str, device: torch.device) -> None:
    class Learning(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = self.up.weight
            with torch.no_grad():
                if how == "in_place":
                    weight.mul_(0.9)
                elif how == "data":
                    weight.data.mul_(0.9)
                elif how == "assigned":
                    self.up.weight = nn.Parameter(weight.detach() * 0.9)
                else:
                    weight.data = weight.data * 0.9
            return super().forward(x)

    pair = Pair(seeded(lambda: Stack(block=Learning)), device, policy)
    # Without gradients nothing tells of a write through `.data`, and bytes are not compared after each pass.
    pair.agree(lambda m: m(noise(device)), passes=3, grad=how == "data")
    pair.finish(tidy=False)


# Training


def test_gradients_land_beside_the_weights_and_a_fused_step_counts(policy: str, device: torch.device) -> None:
    pair = Pair(seeded(Stack), device, policy)
    optimiser = torch.optim.AdamW(pair.model.parameters(), lr=0.05, fused=True)
    beside = torch.optim.AdamW(pair.reference.parameters(), lr=0.05, fused=True)
    for _ in range(3):
        for model in (pair.model, pair.plain):
            model(noise(device)).square().mean().backward()
        for (name, mine), theirs, host in zip(
            pair.model.named_parameters(), pair.plain.parameters(), pair.reference.parameters(), strict=True
        ):
            assert mine.grad is not None, name
            assert mine.grad.device == mine.device
            assert torch.equal(mine.grad.cpu(), theirs.grad.cpu()), name
            host.grad = theirs.grad.cpu()
        optimiser.step()
        optimiser.zero_grad()
        beside.step()
        beside.zero_grad()
        pair.plain = copy.deepcopy(pair.reference).to(device)
        pair.agree(lambda m: m(noise(device)), passes=1)
    pair.finish()


# Real diffusers models


@pytest.mark.parametrize("name", ["flux", "sdxl_unet", "autoencoder_kl"])
def test_fuse_qkv_projections(policy: str, name: str, device: torch.device) -> None:
    case = MODELS[name]
    pair = Pair(case.build().eval(), device, policy)
    calls = [call for call in case.calls if call not in case.repeats]

    def agree() -> None:
        for call in calls * 2:
            assert_same(case.run(pair.model, call, device), case.run(pair.plain, call, device), call)

    agree()
    pair.change(lambda m: m.fuse_qkv_projections())
    assert any("to_qkv" in key for key in pair.model.state_dict())
    agree()
    pair.change(lambda m: m.unfuse_qkv_projections())
    agree()
    pair.finish(saves=False, tidy=False)


def test_diffusers_model_to_bfloat16(policy: str, device: torch.device) -> None:
    case = MODELS["flux"]
    pair = Pair(case.build().eval(), device, policy)
    for change in (lambda m: m, lambda m: m.to(torch.bfloat16), lambda m: m.to(dtype=torch.float32)):
        pair.change(change)
        for _ in range(2):
            assert_same(case.run(pair.model, "forward", device), case.run(pair.plain, "forward", device))
    pair.finish()


def test_the_same_memory_by_another_storage(policy: str, device: torch.device) -> None:
    """Addresses do not tell whose memory it is: what numpy holds of a weight is as good as new memory."""
    pair = Pair(seeded(Stack), device, policy)
    pair.agree(lambda m: m(noise(device)))
    weight = pair.model.blocks[1].up.weight
    weight.data = torch.from_numpy(weight.detach().cpu().numpy())
    pair.agree(lambda m: m(noise(device)))
    pair.finish(tidy=False)
