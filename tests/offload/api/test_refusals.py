"""What cannot be offloaded is refused with an error that names it and says what to do, before anything is changed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from diffusers.hooks import apply_group_offloading
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.api.checks import policy_for
from diffusers_offload_plus.offload.model.inventory import take_inventory
from diffusers_offload_plus.offload.policy import OffloadPolicy, resolve_device
from tests.support.meter import Meter
from tests.support.models import Stack, noise, seeded
from tests.support.policies import DIRECTORY
from tests.zoo.pipelines import PIPELINES, models_of

DEVICE = object()
"""Stands for the device fixture in tables of arguments."""


def snapshot(root: nn.Module) -> list[Any]:
    """Identity and content of everything on every module: attributes, tensors, memory, hooks."""
    found: list[Any] = []
    for name, module in root.named_modules():
        found.append((name, id(module), type(module)))
        for key, value in vars(module).items():
            found.append((key, id(value), type(value)))
            if isinstance(value, dict):
                found.extend((key, name, id(item)) for name, item in value.items())
        registry = vars(module).get("_diffusers_hook")
        found.extend((key, id(hook)) for key, hook in getattr(registry, "hooks", {}).items())
        for tensor in (*vars(module)["_parameters"].values(), *vars(module)["_buffers"].values()):
            if tensor is not None and not isinstance(tensor, nn.parameter.UninitializedTensorMixin):
                found.append((tensor.device, tensor.dtype, tensor.requires_grad, tensor.shape, tensor._version))
                found.append(None if tensor.is_meta else tensor.untyped_storage()._cdata)
    return found


@contextlib.contextmanager
def unchanged(*roots: nn.Module) -> Iterator[None]:
    before = [snapshot(root) for root in roots]
    yield
    assert [snapshot(root) for root in roots] == before


def refused(
    model: Any,
    device: Any,
    error: type[Exception],
    *says: str,
    builtin: type[Exception] = ValueError,
    **arguments: Any,
) -> str:
    """Enabling raises `error`, whose message has all of `says` in it; nothing has changed."""
    roots = [model] if isinstance(model, nn.Module) else list(models_of(model).values())
    with unchanged(*roots), pytest.raises(error) as caught:
        dop.enable_group_offload(model, device, **arguments)
    assert isinstance(caught.value, dop.OffloadPlusError)
    assert isinstance(caught.value, builtin)
    message = str(caught.value)
    assert [part for part in says if part not in message] == [], message
    return message


# Arguments

HERE = str(Path(__file__).parent)
NEW = f"{DIRECTORY}/never made"

ARGUMENTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "offload type unknown": (
        {"offload_type": "layer_level"},
        ("`offload_type`", "layer_level", "'block_level'", "'leaf_level'"),
    ),
    "offload type none": ({"offload_type": None}, ("`offload_type`", "None", "'block_level'")),
    "blocks zero": ({"num_blocks_per_group": 0}, ("`num_blocks_per_group`", "got 0", "at least 1", "Leave it out")),
    "blocks negative": ({"num_blocks_per_group": -1}, ("`num_blocks_per_group`", "got -1", "at least 1")),
    "blocks true": ({"num_blocks_per_group": True}, ("`num_blocks_per_group`", "got True", "integer")),
    "blocks fraction": ({"num_blocks_per_group": 1.5}, ("`num_blocks_per_group`", "got 1.5", "integer")),
    "blocks text": ({"num_blocks_per_group": "2"}, ("`num_blocks_per_group`", "got '2'", "integer")),
    "stream on cpu": (
        {"onload_device": "cpu", "use_stream": True},
        ("`use_stream=True`", "'cpu'", "use_stream=False"),
    ),
    "stream no flag": ({"use_stream": 1}, ("`use_stream`", "got 1", "True or False")),
    "lean no flag": ({"low_cpu_mem_usage": "yes"}, ("`low_cpu_mem_usage`", "'yes'", "True or False")),
    "record without stream": ({"record_stream": True}, ("`record_stream=True`", "`use_stream=True`", "Pass both")),
    "offload device": ({"offload_device": DEVICE}, ("`offload_device`", "CPU", "leave the argument out")),
    "offload device unknown": ({"offload_device": "disk"}, ("`offload_device`", "'disk'")),
    "onload device unknown": ({"onload_device": "nonsense"}, ("`onload_device`", "nonsense", "'cuda'")),
    "onload device no name": ({"onload_device": object}, ("`onload_device`", "torch device")),
    "onload device meta": ({"onload_device": "meta"}, ("`onload_device`", "meta", "computes")),
    "disk empty": ({"offload_to_disk_path": ""}, ("`offload_to_disk_path`", "got ''", "Leave it out")),
    "disk number": ({"offload_to_disk_path": 3}, ("`offload_to_disk_path`", "got 3", "directory")),
    "disk file": ({"offload_to_disk_path": __file__}, ("`offload_to_disk_path`", __file__, "Name another one")),
    "disk below file": ({"offload_to_disk_path": f"{__file__}/x"}, ("`offload_to_disk_path`", "Name another one")),
    "disk in checkpoint": (
        {"offload_to_disk_path": f"{HERE}/x/y", "checkpoint": HERE},
        ("`offload_to_disk_path`", "must not lie in the checkpoint", HERE),
    ),
    "budget without disk": (
        {"host_budget": "10KiB"},
        ("`host_budget`", "`offload_to_disk_path`", "at least"),
    ),
    "checkpoint without disk": ({"checkpoint": HERE}, ("`checkpoint`", "`offload_to_disk_path`")),
    "keep without disk": ({"keep": True}, ("`keep`", "`offload_to_disk_path`")),
    "protect without disk": ({"protect": "copy"}, ("`protect`", "`offload_to_disk_path`")),
    "keep no flag": ({"offload_to_disk_path": NEW, "keep": "yes"}, ("`keep`", "'yes'", "True or False")),
    "protect unknown": ({"offload_to_disk_path": NEW, "protect": "lock"}, ("`protect`", "'copy'", "'lock'")),
    "budget text": (
        {"offload_to_disk_path": NEW, "host_budget": "16 gigs"},
        ("`host_budget`", "'16 gigs'", "'16GiB'"),
    ),
    "budget negative": ({"offload_to_disk_path": NEW, "host_budget": -1}, ("`host_budget`", "got -1")),
    "checkpoint missing": ({"offload_to_disk_path": NEW, "checkpoint": "/no/such"}, ("`checkpoint`", "'/no/such'")),
    "checkpoint empty": ({"offload_to_disk_path": NEW, "checkpoint": HERE}, ("`checkpoint`", HERE, "safetensors")),
    "block modules no name": ({"block_modules": [3]}, ("`block_modules`", "got 3", "names")),
    "block modules unknown": (
        {"block_modules": ["bricks"]},
        ("`block_modules`", "'bricks'", "Stack", "'blocks'", "'inlet'"),
    ),
    "exclude kwargs no name": ({"exclude_kwargs": [None]}, ("`exclude_kwargs`", "got None", "names")),
    "exclude modules of a model": ({"exclude_modules": ["blocks"]}, ("`exclude_modules`", "Stack", "Leave it out")),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_argument(case: str, device: torch.device, meter: Meter) -> None:
    arguments, says = ARGUMENTS[case]
    arguments = {name: device if value is DEVICE else value for name, value in arguments.items()}
    refused(seeded(Stack), arguments.pop("onload_device", device), dop.InvalidPolicyError, *says, **arguments)
    assert meter.copies == meter.pinned == meter.live == 0


def test_values_are_validated_without_looking_at_the_machine(tmp_path: Path) -> None:
    """A policy holds what was said; whether this machine can do it is checked apart."""
    missing = {"offload_to_disk_path": tmp_path / "new", "checkpoint": "~/none"}
    policy = OffloadPolicy.from_arguments(onload_device="cuda:77", **missing)
    assert policy.disk is not None
    assert (policy.disk.directory, policy.disk.checkpoint) == (str(tmp_path / "new"), "~/none")
    assert policy.device == policy.onload_device == torch.device("cuda:77")
    assert list(tmp_path.iterdir()) == []


def test_what_the_machine_decides(device: torch.device, tmp_path: Path) -> None:
    """Once, so that a later change of directory, link or current device changes nothing."""
    (tmp_path / "link").symlink_to(tmp_path)
    policy = policy_for(onload_device=device.type, offload_to_disk_path=tmp_path / "link" / "store")
    assert policy.disk is not None
    assert policy.disk.directory == str(tmp_path.resolve() / "store")
    assert (tmp_path / "store").is_dir()
    assert policy.onload_device == torch.device(device.type)
    assert policy.device == resolve_device(torch.device(device.type)) != policy.onload_device


def test_device_that_this_machine_has_not(device: torch.device) -> None:
    model = seeded(Stack)
    refused(
        model, f"{device.type}:9", dop.InvalidPolicyError, "`onload_device`", f"'{device.type}:9'", "highest", "index"
    )
    for kind in ("cuda", "xpu", "cuda:1"):
        if not torch.get_device_module(kind.split(":")[0]).is_available():
            refused(model, kind, dop.InvalidPolicyError, "`onload_device`", f"'{kind}'", "Name a device that exists")


@pytest.mark.parametrize(
    "case",
    [
        "blocks zero",
        "onload device unknown",
        "disk file",
        "checkpoint missing",
        "block modules unknown",
        "record without stream",
    ],
)
def test_argument_on_an_offloaded_model(case: str, device: torch.device) -> None:
    """The settings in force stay in force."""
    model, x = seeded(Stack), noise(device)
    want = seeded(Stack).to(device)(x)
    dop.enable_group_offload(model, device, use_stream=True)
    arguments = dict(ARGUMENTS[case][0])
    refused(model, arguments.pop("onload_device", device), dop.InvalidPolicyError, **arguments)
    assert torch.equal(model(x), want)
    dop.disable_group_offload(model)


@pytest.mark.parametrize("target", [None, 3, "pipe", torch.ones(2), object()], ids=lambda t: type(t).__name__)
def test_target_that_is_no_model(target: Any, device: torch.device) -> None:
    with pytest.raises(dop.InvalidPolicyError, match="needs a pipeline, a components manager"):
        dop.enable_group_offload(target, device)


def test_one_bad_component_leaves_all_others_alone(device: torch.device) -> None:
    pipeline = PIPELINES["flux"].build()
    pipeline.vae.decoder.conv_out.weight = nn.Parameter(
        torch.empty(pipeline.vae.decoder.conv_out.weight.shape, device="meta")
    )
    refused(pipeline, device, dop.UnsupportedModelError, "vae.decoder.conv_out.weight", "meta", "Load")
    refused(pipeline, device, dop.UnsupportedModelError, "vae.decoder.conv_out.weight", exclude_modules="text_encoder")
    dop.enable_group_offload(pipeline.text_encoder, device)
    dop.disable_group_offload(pipeline.text_encoder)


def test_unknown_component_in_exclude_modules(device: torch.device) -> None:
    pipeline = PIPELINES["flux"].build()
    says = ("`exclude_modules`", "'unet'", "FluxPipeline", "transformer")
    refused(pipeline, device, dop.InvalidPolicyError, *says, exclude_modules=["vae", "unet"])


def test_every_component_in_exclude_modules(device: torch.device) -> None:
    pipeline = PIPELINES["flux"].build()
    names = list(models_of(pipeline))
    says = ("`exclude_modules`", "every component", "FluxPipeline", *names)
    refused(pipeline, device, dop.InvalidPolicyError, *says, exclude_modules=names)
    with pytest.raises(dop.InvalidPolicyError, match="every component"):
        dop.plan_group_offload(pipeline, vram_budget="1GiB", exclude_modules=names)


def test_unknown_block_modules_in_a_pipeline(device: torch.device) -> None:
    """A name that no component has is a mistake as well."""
    pipeline = PIPELINES["flux"].build()
    refused(pipeline, device, dop.InvalidPolicyError, "`block_modules`", "'bricks'", block_modules=["bricks"])


# Models


def test_class_that_declares_itself_unfit(device: torch.device) -> None:
    class Unfit(Stack):
        _supports_group_offloading = False

    refused(seeded(Unfit), device, dop.UnsupportedModelError, "Unfit", "_supports_group_offloading", "exclude_modules")


@pytest.mark.parametrize("kind", ["parameter", "buffer"])
def test_meta_tensors(kind: str, device: torch.device) -> None:
    model = seeded(Stack)
    if kind == "parameter":
        model.blocks[2].up.weight = nn.Parameter(torch.empty(64, 32, device="meta"))
        name = "blocks.2.up.weight"
    else:
        model.blocks[2].register_buffer("table", torch.empty(4, device="meta"))
        name = "blocks.2.table"
    refused(model, device, dop.UnsupportedModelError, kind, name, "meta", "Load or initialise")


def test_lazy_parameters(device: torch.device) -> None:
    model = seeded(Stack)
    model.blocks[1].up = nn.LazyLinear(64)
    refused(model, device, dop.UnsupportedModelError, "blocks.1.up.weight", "initialise")


def test_sharded_tensors(device: torch.device, tmp_path: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        model = seeded(Stack)
        model.blocks[3].down.weight = nn.Parameter(
            distribute_tensor(model.blocks[3].down.weight.detach(), mesh, [Replicate()])
        )
        assert isinstance(model.blocks[3].down.weight, DTensor)
        policy = policy_for(onload_device=device)
        with pytest.raises(dop.UnsupportedModelError, match=r"blocks\.3\.down\.weight' is a DTensor"):
            take_inventory(model, policy, "model")
        with pytest.raises(dop.UnsupportedModelError, match="sharded"):
            dop.enable_group_offload(model, device)
        assert not any("_diffusers_hook" in vars(module) for module in model.modules())
    finally:
        torch.distributed.destroy_process_group()


def test_torchscript(device: torch.device) -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(32, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x)

    scripted = torch.jit.trace(Small(), torch.ones(1, 32))
    with pytest.raises(dop.UnsupportedModelError, match=r"TorchScript.*eager"):
        dop.enable_group_offload(scripted, device)


def test_model_compiled_as_a_whole(device: torch.device) -> None:
    model = seeded(Stack)
    model.compile(backend="eager")
    says = ("Stack", "compiled as a whole", "compile_repeated_blocks()")
    refused(model, device, dop.CompileOrderError, *says, builtin=RuntimeError)


# Other schemes


@pytest.mark.parametrize("level", ["block_level", "leaf_level"])
def test_stock_hooks_are_to_be_upgraded(level: str, device: torch.device) -> None:
    model, x = seeded(Stack), noise(device)
    want = seeded(Stack).to(device)(x)
    apply_group_offloading(model, onload_device=device, offload_type=level, num_blocks_per_group=1)
    refused(model, device, dop.HookConflictError, "Stack", "own group-offloading hooks", "upgrade")
    assert torch.equal(model(x), want), "stock offloading still works"
    dop.upgrade(model)
    assert torch.equal(model(x), want)
    dop.disable_group_offload(model)


def test_stock_hooks_on_a_part(device: torch.device) -> None:
    model = seeded(Stack)
    apply_group_offloading(model.blocks[2], onload_device=device, offload_type="leaf_level")
    refused(model, device, dop.HookConflictError, "Stack.blocks.2", "upgrade")


def test_stock_hooks_to_disk_cannot_be_upgraded(device: torch.device, tmp_path: Path) -> None:
    model = seeded(Stack)
    folder = str(tmp_path / "weights")
    apply_group_offloading(
        model, onload_device=device, offload_type="block_level", num_blocks_per_group=1, offload_to_disk_path=folder
    )
    with unchanged(model), pytest.raises(dop.HookConflictError) as caught:
        dop.upgrade(model)
    for part in ("Stack", folder, "from_pretrained", "enable_group_offload"):
        assert part in str(caught.value)


def test_nothing_to_upgrade_or_disable(device: torch.device) -> None:
    model = seeded(Stack)
    with unchanged(model):
        with pytest.raises(dop.NotOffloadedError, match=r"no stock .*`enable_group_offload`"):
            dop.upgrade(model)
        with pytest.raises(dop.NotOffloadedError, match="nothing to disable"):
            dop.disable_group_offload(model)
        with pytest.raises(dop.NotOffloadedError, match="not offloaded"):
            dop.offload_report(model)
        with pytest.raises(dop.NotOffloadedError, match="enable_group_offload"), dop.onloaded(model):
            pass


ACCELERATE: dict[str, Callable[[nn.Module, torch.device], object]] = {
    "CpuOffload": lambda m, d: accelerate.cpu_offload_with_hook(m, execution_device=d),
    "AlignDevicesHook": lambda m, d: accelerate.cpu_offload(m, execution_device=d),
}


@pytest.mark.parametrize("name", ACCELERATE)
def test_accelerate_hooks(name: str, device: torch.device) -> None:
    model = seeded(Stack)
    ACCELERATE[name](model, device)
    refused(model, device, dop.HookConflictError, "Stack", "accelerate", name, "remove_hook_from_module")


@pytest.mark.parametrize("outer", [True, False], ids=["whole of a part", "part of a whole"])
def test_one_model_inside_another(outer: bool, device: torch.device) -> None:
    model = seeded(Stack)
    first, second = (model.blocks[2], model) if outer else (model, model.blocks[2])
    dop.enable_group_offload(first, device)
    refused(second, device, dop.HookConflictError, "contains the other", "disable_group_offload")
    dop.disable_group_offload(first)
    dop.enable_group_offload(second, device)
    dop.disable_group_offload(second)
