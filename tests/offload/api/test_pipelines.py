"""From a prompt to an image: offloaded pipelines of every kind give what the un-offloaded ones give on the device."""

from __future__ import annotations

import copy
import functools
import gc
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers.hooks import apply_group_offloading
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.hooks.attachment import attachment_of
from diffusers_offload_plus.offload.hooks.diffusers_api import stock_hooks
from tests.offload.api.test_real_models import forget_caches
from tests.support.meter import Meter
from tests.support.models import assert_plain, attributes
from tests.support.policies import settings
from tests.zoo.case import randomise
from tests.zoo.pipelines import PIPELINES, PROMPT, flux_parts, models_of, quiet, seeded

pytestmark = pytest.mark.usefixtures("meter")
every_pipeline = pytest.mark.parametrize("name", PIPELINES)

Enable = Callable[[Any, torch.device, dict[str, Any]], None]


@functools.cache
def expected(name: str, device: torch.device) -> np.ndarray:
    pipeline = PIPELINES[name].build().to(device)
    image = PIPELINES[name].run(pipeline, PROMPT, 0)
    for model in models_of(pipeline).values():
        forget_caches(model)
    return image


def image_of(name: str, pipeline: Any) -> np.ndarray:
    return PIPELINES[name].run(pipeline, PROMPT, 0)


def weights_of(pipeline: Any) -> dict[str, torch.Tensor]:
    states = {part: model.state_dict() for part, model in models_of(pipeline).items()}
    return {f"{part}.{key}": value for part, state in states.items() for key, value in state.items()}


def assert_same_weights(one: Any, other: Any) -> None:
    mine, theirs = weights_of(one), weights_of(other)
    assert mine.keys() == theirs.keys()
    assert [key for key in mine if not torch.equal(mine[key].cpu(), theirs[key].cpu())] == []


def assert_ours(pipeline: Any) -> None:
    """Every model is offloaded, by hooks of ours only."""
    for part, model in models_of(pipeline).items():
        assert attachment_of(model) is not None, part
        assert stock_hooks(model) == [], part


def directly(pipeline: Any, device: torch.device, arguments: dict[str, Any]) -> None:
    dop.enable_group_offload(pipeline, device, **arguments)


def as_method(pipeline: Any, device: torch.device, arguments: dict[str, Any]) -> None:
    kind = type(pipeline)
    assert dop.extend(pipeline) is pipeline
    assert isinstance(pipeline, kind)
    assert type(pipeline).__name__ == kind.__name__
    pipeline.enable_group_offload(device, **arguments)


def over_stock(pipeline: Any, device: torch.device, arguments: dict[str, Any]) -> None:
    arguments = {"num_blocks_per_group": 1, **arguments} if arguments["offload_type"] == "block_level" else arguments
    if isinstance(pipeline, diffusers.DiffusionPipeline):
        pipeline.enable_group_offload(onload_device=device, **arguments)
    else:
        for model in models_of(pipeline).values():
            apply_group_offloading(model, onload_device=device, **arguments)
    assert any(stock_hooks(model) for model in models_of(pipeline).values())
    dop.upgrade(pipeline)


WAYS: dict[str, tuple[Enable, str]] = {
    "function-block-2-stream": (directly, "block-2-stream"),
    "function-leaf-stream": (directly, "leaf-stream"),
    "method-block": (as_method, "block"),
    "upgrade-leaf-lean": (over_stock, "leaf-lean"),
    "upgrade-block": (over_stock, "block"),
}


@every_pipeline
@pytest.mark.parametrize("way", WAYS)
def test_prompt_to_image(name: str, way: str, device: torch.device) -> None:
    want = expected(name, device)
    pipeline = PIPELINES[name].build()
    enable, policy = WAYS[way]
    enable(pipeline, device, settings(policy, pipeline, device))
    assert_ours(pipeline)
    assert pipeline._execution_device == device
    assert np.array_equal(image_of(name, pipeline), want)
    report = dop.offload_report(pipeline)
    assert {component.name for component in report.components} == set(models_of(pipeline))
    assert all(component.peak_device_bytes > 0 for component in report.components), str(report)
    assert_same_weights(pipeline, PIPELINES[name].build())
    dop.disable_group_offload(pipeline)
    for model in models_of(pipeline).values():
        assert_plain(model)
        forget_caches(model)


@pytest.mark.parametrize("policy", ["block", "leaf-record"])
def test_second_image_and_other_prompt(policy: str, device: torch.device) -> None:
    plain, pipeline = PIPELINES["flux"].build().to(device), PIPELINES["flux"].build()
    dop.enable_group_offload(pipeline, device, **settings(policy, pipeline, device))
    for prompt, seed in ((PROMPT, 0), ("the mat", 1), (PROMPT, 0)):
        assert np.array_equal(
            PIPELINES["flux"].run(pipeline, prompt, seed), PIPELINES["flux"].run(plain, prompt, seed)
        )
    dop.disable_group_offload(pipeline)


@pytest.mark.parametrize("policy", ["block-stream", "leaf-stream"])
def test_control_net(policy: str, device: torch.device) -> None:
    def build() -> Any:
        parts = flux_parts()
        control = diffusers.FluxControlNetModel.from_transformer(
            parts["transformer"], num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2
        )
        randomise(control, seed=7)
        return quiet(diffusers.FluxControlNetPipeline(controlnet=control.eval(), **parts))

    def run(pipeline: Any) -> np.ndarray:
        drawn = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        images = pipeline(
            PROMPT,
            control_image=PIL.Image.fromarray(drawn),
            controlnet_conditioning_scale=0.7,
            height=16,
            width=16,
            num_inference_steps=2,
            max_sequence_length=16,
            generator=seeded(0),
            output_type="np",
        ).images
        return np.asarray(images)

    want = run(build().to(device))
    pipeline = build()
    dop.enable_group_offload(pipeline, device, **settings(policy, pipeline, device))
    for _ in range(2):
        assert np.array_equal(run(pipeline), want)
    assert dop.offload_report(pipeline)["controlnet"].transferred_bytes > 0
    dop.disable_group_offload(pipeline)


def test_components_manager_as_the_target(device: torch.device) -> None:
    manager = diffusers.ComponentsManager()
    pipeline = diffusers.FluxAutoBlocks().init_pipeline(components_manager=manager, collection="one")
    pipeline.update_components(**flux_parts())
    quiet(pipeline)
    dop.enable_group_offload(manager, device, offload_type="leaf_level", use_stream=True)
    assert_ours(pipeline)
    assert np.array_equal(image_of("modular_flux", pipeline), expected("modular_flux", device))
    assert len(dop.offload_report(manager).components) == len(models_of(pipeline))
    dop.disable_group_offload(manager)
    for model in models_of(pipeline).values():
        assert_plain(model)


@pytest.mark.parametrize("excluded", ["vae", ("vae", "text_encoder")])
@pytest.mark.parametrize("name", ["flux", "modular_flux"])
def test_exclude_modules(name: str, excluded: Any, device: torch.device) -> None:
    names = {excluded} if isinstance(excluded, str) else set(excluded)
    pipeline = PIPELINES[name].build()
    dop.enable_group_offload(pipeline, device, use_stream=True, exclude_modules=excluded)
    assert {component.name for component in dop.offload_report(pipeline).components} == set(
        models_of(pipeline)
    ) - names
    for part in names:
        model = models_of(pipeline)[part]
        assert_plain(model)
        assert {p.device for p in model.parameters()} == {device}
    assert pipeline._execution_device == device
    assert np.array_equal(image_of(name, pipeline), expected(name, device))
    # Excluded after it had been offloaded, and taken in again.
    dop.enable_group_offload(pipeline, device, use_stream=True)
    assert_ours(pipeline)
    dop.enable_group_offload(pipeline, device, use_stream=True, exclude_modules=["transformer"])
    assert_plain(pipeline.transformer)
    assert np.array_equal(image_of(name, pipeline), expected(name, device))
    dop.disable_group_offload(pipeline)


def test_to_is_guarded(device: torch.device, caplog: pytest.LogCaptureFixture) -> None:
    pipeline = PIPELINES["flux"].build()
    dop.enable_group_offload(pipeline, device, use_stream=True)
    diffusers_log = logging.getLogger("diffusers")
    diffusers_log.addHandler(caplog.handler)
    try:
        pipeline.to(device)
        pipeline.transformer.to(device)
    finally:
        diffusers_log.removeHandler(caplog.handler)
    assert sum("group offload" in record.getMessage() for record in caplog.records) >= len(models_of(pipeline))
    assert all(p.device.type == "cpu" for p in pipeline.transformer.transformer_blocks.parameters())
    for refused in (pipeline.enable_model_cpu_offload, pipeline.enable_sequential_cpu_offload):
        with pytest.raises(ValueError, match="group offload"):
            refused(device=device)
    assert np.array_equal(image_of("flux", pipeline), expected("flux", device))
    dop.disable_group_offload(pipeline)
    pipeline.to(device)
    assert np.array_equal(image_of("flux", pipeline), expected("flux", device))


def test_stock_method_on_an_offloaded_pipeline_adds_nothing(device: torch.device) -> None:
    """diffusers passes over modules that already have a hook of that name, or says so; never two at once."""
    pipeline = PIPELINES["flux"].build()
    dop.enable_group_offload(pipeline, device)
    try:
        pipeline.enable_group_offload(onload_device=device, offload_type="leaf_level")
    except ValueError as error:
        assert "already" in str(error) or "hook" in str(error)  # noqa: PT017
    else:
        assert np.array_equal(image_of("flux", pipeline), expected("flux", device))
    for model in models_of(pipeline).values():
        dop.disable_group_offload(model, missing_ok=True)


def test_enabling_twice_with_the_same_settings_does_nothing(
    device: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = PIPELINES["sd3"].build()
    dop.enable_group_offload(pipeline, device, use_stream=True)
    attachments = {name: attachment_of(model) for name, model in models_of(pipeline).items()}
    slabs = {name: [group.storage for group in a.engine.groups] for name, a in attachments.items() if a is not None}
    caplog.set_level(logging.INFO, logger="diffusers_offload_plus")
    dop.enable_group_offload(pipeline, device, use_stream=True)
    dop.enable_group_offload(pipeline.transformer, device, use_stream=True)
    for name, model in models_of(pipeline).items():
        assert attachment_of(model) is attachments[name]
        assert [id(g.storage) for g in attachments[name].engine.groups] == [id(slab) for slab in slabs[name]]
    assert caplog.records == []
    assert np.array_equal(image_of("sd3", pipeline), expected("sd3", device))
    dop.disable_group_offload(pipeline)


def test_enabling_again_with_other_settings_plans_anew(device: torch.device, caplog: pytest.LogCaptureFixture) -> None:
    pipeline = PIPELINES["flux"].build()
    dop.enable_group_offload(pipeline, device, offload_type="block_level")
    assert np.array_equal(image_of("flux", pipeline), expected("flux", device))
    caplog.set_level(logging.INFO, logger="diffusers_offload_plus")
    dop.enable_group_offload(pipeline, device, offload_type="leaf_level", use_stream=True)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(models_of(pipeline))
    for name in models_of(pipeline):
        assert any(f"'{name}'" in line for line in said), name
    assert {component.offload_type for component in dop.offload_report(pipeline).components} == {"leaf_level"}
    assert np.array_equal(image_of("flux", pipeline), expected("flux", device))
    dop.disable_group_offload(pipeline)


@pytest.mark.parametrize("policy", ["block-2-stream", "leaf-lean"])
def test_disable_leaves_no_trace(policy: str, device: torch.device, meter: Meter) -> None:
    pipeline = PIPELINES["sdxl"].build()
    image_of("sdxl", pipeline)  # transformers marks its models when they first run
    before = {name: attributes(model) for name, model in models_of(pipeline).items()}
    ids = {name: [id(t) for t in (*m.parameters(), *m.buffers())] for name, m in models_of(pipeline).items()}
    live, pinned = meter.live, meter.pinned
    dop.enable_group_offload(pipeline, device, **settings(policy, pipeline, device))
    image_of("sdxl", pipeline)
    pipeline.scheduler.set_timesteps(1)  # or it keeps its time steps on the device
    dop.disable_group_offload(pipeline)
    for name, model in models_of(pipeline).items():
        assert_plain(model)
        assert attributes(model) == before[name]
        assert [id(t) for t in (*model.parameters(), *model.buffers())] == ids[name]
        assert all(t.device.type == "cpu" and not t.is_pinned() for t in (*model.parameters(), *model.buffers()))
    gc.collect()
    assert meter.live == live
    assert meter.pinned == pinned
    assert_same_weights(pipeline, PIPELINES["sdxl"].build())
    with pytest.raises(dop.NotOffloadedError):
        dop.disable_group_offload(pipeline)
    dop.disable_group_offload(pipeline, missing_ok=True)


@pytest.mark.parametrize("name", ["flux", "wan", "modular_flux"])
def test_extended_pipeline_saves_the_same_files(name: str, device: torch.device, tmp_path: Path) -> None:
    options = {"overwrite_modular_index": True} if name.startswith("modular") else {}
    plain, pipeline = PIPELINES[name].build(), dop.extend(PIPELINES[name].build())
    image_of(name, plain)  # a run leaves its padding in the tokenizers' files
    # The same folder name, as diffusers writes it into the files of modular pipelines.
    plain.save_pretrained(str(tmp_path / "one" / "model"), **options)
    pipeline.enable_group_offload(device, offload_type="leaf_level", use_stream=True)
    image_of(name, pipeline)
    pipeline.save_pretrained(str(tmp_path / "other" / "model"), **options)
    one, other = (
        {p.relative_to(r): p for p in r.rglob("*") if p.is_file()} for r in (tmp_path / "one", tmp_path / "other")
    )
    assert one.keys() == other.keys()
    assert len(one) > 5
    for path, file in one.items():
        ours = other[path].read_bytes().replace(str(tmp_path / "other").encode(), str(tmp_path / "one").encode())
        assert file.read_bytes() == ours, path
    pipeline.disable_group_offload()


def test_extended_pipeline_copies_to_its_own_class(device: torch.device) -> None:
    pipeline = dop.extend(PIPELINES["sd3"].build())
    assert dop.extend(pipeline) is pipeline
    assert len([kind for kind in type(pipeline).__mro__ if kind.__name__ == "_Extended"]) == 1
    pipeline.enable_group_offload(device)
    twin = copy.copy(pipeline)
    assert type(twin) is diffusers.StableDiffusion3Pipeline
    assert diffusers.StableDiffusion3Pipeline.enable_group_offload is not type(pipeline).enable_group_offload
    other = PIPELINES["sd3"].build()
    assert type(other) is diffusers.StableDiffusion3Pipeline
    assert "Store the weights" in type(pipeline).enable_group_offload.__doc__
    assert pipeline.offload_report()["transformer"].groups > 0
    pipeline.disable_group_offload()


def test_one_component_alone(device: torch.device) -> None:
    """The transformer offloaded, the rest on the device whole."""
    pipeline = PIPELINES["flux"].build()
    dop.enable_group_offload(pipeline.transformer, device, use_stream=True)
    for part, model in models_of(pipeline).items():
        if part != "transformer":
            model.to(device)
    assert pipeline._execution_device == device
    assert np.array_equal(image_of("flux", pipeline), expected("flux", device))
    with pytest.raises(dop.NotOffloadedError, match="part of"):
        dop.disable_group_offload(pipeline.transformer.transformer_blocks[0])
    dop.disable_group_offload(pipeline)


def test_component_shared_by_two_pipelines(device: torch.device) -> None:
    first = PIPELINES["flux"].build()
    second = quiet(diffusers.FluxImg2ImgPipeline(**first.components))
    dop.enable_group_offload(first, device)
    dop.enable_group_offload(second, device)
    assert isinstance(first.transformer, nn.Module)
    assert first.transformer is second.transformer
    assert np.array_equal(image_of("flux", first), expected("flux", device))
    dop.disable_group_offload(second)
    with pytest.raises(dop.NotOffloadedError):
        dop.disable_group_offload(first)
