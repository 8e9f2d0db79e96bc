"""Straight to disk: the weights are those of ``from_pretrained``, and are never all in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from torch import nn

import diffusers_offload_plus as dop
from tests.zoo.models import MODELS
from tests.zoo.pipelines import PIPELINES

pytestmark = pytest.mark.usefixtures("meter")
CASES = ["flux", "sd3", "wan", "autoencoder_kl", "sdxl_unet", "clip_text", "t5", "umt5"]


def saved(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A model of the zoo in a sharded checkpoint; its class."""
    model: Any = MODELS[name].build().eval().to(dtype)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    model.save_pretrained(folder, max_shard_size=max(20_000, size // 3))
    return type(model)


def reference(cls: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    of_transformers = cls.__module__.startswith("transformers.")
    model: nn.Module = cls.from_pretrained(folder, **{"dtype" if of_transformers else "torch_dtype": dtype})
    return model.eval()


@pytest.mark.parametrize("name", [name for name in CASES if name in MODELS])
def test_weights_and_output_are_those_of_from_pretrained(name: str, device: torch.device, tmp_path: Path) -> None:
    cls = saved(name, tmp_path / "model")
    plain = reference(cls, tmp_path / "model", torch.float32)
    model = dop.load_offloaded(
        cls, tmp_path / "model", device, offload_to_disk_path=tmp_path / "store", offload_type="leaf_level"
    ).eval()
    report = dop.offload_report(model).components[0]
    assert report.disk_written_bytes == 0
    assert report.disk_found_bytes >= 0.9 * sum(p.numel() * p.element_size() for p in plain.parameters())
    mine, theirs = model.state_dict(), plain.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key].cpu(), theirs[key]) and mine[key].dtype == theirs[key].dtype for key in theirs)
    plain.to(device)
    call = next(iter(MODELS[name].calls))
    got, want = MODELS[name].run(model, call, device), MODELS[name].run(plain, call, device)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    dop.disable_group_offload(model)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["wan", "t5", "autoencoder_kl"])
def test_cast_as_from_pretrained_casts(
    name: str, wanted: torch.dtype, stored: torch.dtype, device: torch.device, tmp_path: Path
) -> None:
    """Also what a class keeps in float32."""
    cls = saved(name, tmp_path / "model", stored)
    want = reference(cls, tmp_path / "model", wanted).state_dict()
    model = dop.load_offloaded(
        cls, tmp_path / "model", device, offload_to_disk_path=tmp_path / "store", torch_dtype=wanted
    )
    got = model.state_dict()
    for key, value in want.items():
        assert got[key].dtype == value.dtype, key
        assert torch.equal(got[key].cpu(), value), key
    dop.disable_group_offload(model)


def test_a_pipeline(device: torch.device, tmp_path: Path) -> None:
    case = PIPELINES["flux"]
    plain = case.build()
    plain.save_pretrained(tmp_path / "pipe")
    pipe = dop.load_offloaded(
        FluxPipeline,
        tmp_path / "pipe",
        device,
        offload_to_disk_path=tmp_path / "store",
        use_stream=device.type != "cpu",
    )
    report = dop.offload_report(pipe)
    assert {c.name for c in report.components} == {"transformer", "text_encoder", "text_encoder_2", "vae"}
    assert sum(c.disk_written_bytes for c in report.components) == 0
    want = case.run(plain.to(device), "a lighthouse", 3)
    assert np.array_equal(case.run(pipe, "a lighthouse", 3), want)
    dop.disable_group_offload(pipe)


def test_a_component_of_a_pipeline(device: torch.device, tmp_path: Path) -> None:
    pipe = PIPELINES["flux"].build()
    pipe.save_pretrained(tmp_path / "pipe")
    model = dop.load_offloaded(
        type(pipe.transformer),
        tmp_path / "pipe",
        device,
        offload_to_disk_path=tmp_path / "store",
        loading={"subfolder": "transformer"},
    )
    want = pipe.transformer.state_dict()
    assert all(torch.equal(value.cpu(), want[key]) for key, value in model.state_dict().items())
    assert dop.offload_report(model).components[0].disk_written_bytes == 0
    dop.disable_group_offload(model)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cls": dict}, "`cls`"),
        ({"path": "/no/such/checkpoint"}, "`path`"),
        ({"torch_dtype": "bfloat16"}, "`torch_dtype`"),
        ({"torch_dtype": torch.int8}, "`torch_dtype`"),
        ({"loading": {"device_map": "auto"}}, "device_map"),
        ({"host_budget": "much"}, "`host_budget`"),
        ({"offload_type": "layer"}, "`offload_type`"),
        ({"onload_device": "nonsense"}, "`onload_device`"),
    ],
)
def test_bad_arguments_are_refused_before_loading(
    change: dict[str, Any], says: str, device: torch.device, tmp_path: Path
) -> None:
    cls = saved("flux", tmp_path / "model")
    given: dict[str, Any] = {"cls": cls, "path": tmp_path / "model", "onload_device": device, **change}
    with pytest.raises(dop.InvalidPolicyError, match=says):
        dop.load_offloaded(**given, offload_to_disk_path=tmp_path / "store")


IN_A_PROCESS_OF_ITS_OWN = """
import json, sys, torch
import diffusers_offload_plus as dop
from diffusers import FluxTransformer2DModel
from diffusers_offload_plus.offload.memory.process import give_memory_back, process_memory
from tests.zoo.models import MODELS
folder, dtype = sys.argv[1], getattr(torch, sys.argv[2])
give_memory_back()
before = process_memory().anonymous
model = dop.load_offloaded(FluxTransformer2DModel, folder + "/model", "cpu", offload_to_disk_path=folder + "/store",
                           offload_type="leaf_level", torch_dtype=dtype)
give_memory_back()
loaded = process_memory().anonymous
inputs = dict(hidden_states=torch.ones(1, 4, 64, dtype=dtype),
              encoder_hidden_states=torch.ones(1, 4, 256, dtype=dtype),
              pooled_projections=torch.ones(1, 64, dtype=dtype), timestep=torch.tensor([0.5], dtype=dtype),
              img_ids=torch.zeros(4, 3), txt_ids=torch.zeros(4, 3), return_dict=False)
with torch.no_grad():
    for _ in range(3):
        output = model(**inputs)[0]
give_memory_back()
size = sum(p.numel() * p.element_size() for p in model.parameters())
print(json.dumps([before, loaded, process_memory().anonymous, size, output.float().sum().item()]))
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_are_never_all_in_anonymous_memory(dtype: str, tmp_path: Path) -> None:
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=64,
        num_attention_heads=8,
        joint_attention_dim=256,
        pooled_projection_dim=64,
        axes_dims_rope=(16, 24, 24),
    )
    model.save_pretrained(tmp_path / "model", max_shard_size="40MB")
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS_OF_ITS_OWN, str(tmp_path), dtype],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    before, loaded, after, size, _ = json.loads(done.stdout.splitlines()[-1])
    assert size > 50_000_000
    assert loaded - before < 0.1 * size + 8_000_000
    assert after - before < 0.25 * size + 8_000_000
