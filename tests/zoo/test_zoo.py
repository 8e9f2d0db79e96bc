"""The zoo itself: everything builds, runs, repeats to the bit, and has no weight that does not matter."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
import torch

from .case import equal_outputs, randomise
from .models import MODELS, weights_matter
from .pipelines import PIPELINES, PROMPT, models_of, realign, save_and_load
from .quantized import QUANTISERS, quantised_parameters

LARGEST = 5_000_000
"""No case may have more bytes of weights than this."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Kernels this small only wait for each other on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


every_model = pytest.mark.parametrize("name", MODELS)
every_pipeline = pytest.mark.parametrize("name", PIPELINES)


def size_of(model: torch.nn.Module) -> int:
    """Bytes of weights."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


@every_model
def test_calls_are_deterministic(name: str) -> None:
    """Two runs of one model and a run of a second build agree to the bit, for every call; another seed differs."""
    case = MODELS[name]
    model, again = case.build(), case.build()
    assert size_of(model) < LARGEST
    for call in case.calls:
        outputs = case.run(model, call)
        assert equal_outputs(outputs, case.run(model, call)), call
        assert equal_outputs(outputs, case.run(again, call)), call
        assert not equal_outputs(outputs, case.run(model, call, seed=1)), call
        for output in outputs:
            assert output.isfinite().all(), call
            assert output.unique().numel() > 1, call


@every_model
def test_calls_run_in_bfloat16(name: str) -> None:
    """Inputs follow the dtype of the weights."""
    case = MODELS[name]
    model = case.build().to(torch.bfloat16)
    for call in set(case.calls) - case.float32_only:
        assert all(output.isfinite().all() for output in case.run(model, call)), call


@pytest.mark.soak
@every_model
def test_weights_matter(name: str) -> None:
    """Each parameter changes some output, but for those the case excuses, and none is excused in vain."""
    case = MODELS[name]
    unnoticed = weights_matter(case)
    assert [one for one in unnoticed if not any(fnmatchcase(one, pattern) for pattern in case.unused)] == []
    assert [pattern for pattern in case.unused if not any(fnmatchcase(one, pattern) for one in unnoticed)] == []


def test_weights_matter_notices() -> None:
    """A parameter that nothing reads is found."""
    case = MODELS["t5"]

    def build() -> torch.nn.Module:
        model = case.build()
        model.idle = torch.nn.Parameter(torch.ones(2))
        return model

    assert weights_matter(type(case)(case.name, build, case.calls)) == {"idle"}


def test_building_leaves_the_global_random_state() -> None:
    """A build neither reads nor moves the global random state."""
    torch.manual_seed(0)
    state = torch.get_rng_state()
    MODELS["flux"].build()
    assert torch.equal(torch.get_rng_state(), state)


def test_flux_has_the_known_size() -> None:
    """The Flux of the zoo has seven blocks and 765,968 bytes, as in earlier measurements."""
    model = MODELS["flux"].build()
    assert len(model.transformer_blocks) + len(model.single_transformer_blocks) == 7
    assert size_of(model) == 765_968


@pytest.mark.parametrize("kind", QUANTISERS)
@pytest.mark.parametrize("name", ["flux", "wan", "sdxl_unet", "t5", "qwen_vl"])
def test_quantised_models_run(name: str, kind: str) -> None:
    """A quantised model repeats to the bit, and is near the plain one but not equal to it."""
    case = MODELS[name]
    plain = case.run(case.build())
    model = QUANTISERS[kind](case.build())
    assert quantised_parameters(model)
    outputs = case.run(model)
    assert equal_outputs(outputs, case.run(model))
    assert not equal_outputs(outputs, plain)
    assert (outputs[0] - plain[0]).norm() < 0.4 * plain[0].norm()


@every_pipeline
def test_pipelines_are_deterministic(name: str) -> None:
    """Two builds agree to the bit; prompt and seed matter."""
    case = PIPELINES[name]
    pipeline = case.build()
    image = case.run(pipeline, PROMPT, 0)
    assert np.isfinite(image).all()
    assert image.std() > 0.05
    assert np.array_equal(image, case.run(case.build(), PROMPT, 0))
    assert not np.array_equal(image, case.run(pipeline, "the mat", 0))
    assert not np.array_equal(image, case.run(pipeline, PROMPT, 1))


@every_pipeline
def test_every_component_matters(name: str) -> None:
    """Other weights in any one component give another image."""
    case = PIPELINES[name]
    pipeline = case.build()
    image = case.run(pipeline, PROMPT, 0)
    for component, model in models_of(pipeline).items():
        kept = {key: value.clone() for key, value in model.state_dict().items()}
        randomise(model, seed=99)
        assert not np.array_equal(image, case.run(pipeline, PROMPT, 0)), component
        model.load_state_dict(kept)
    assert np.array_equal(image, case.run(pipeline, PROMPT, 0))


@every_pipeline
def test_pipelines_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    """Saved and loaded, the weights are equal to the bit, and so is the image once the weights are aligned."""
    case = PIPELINES[name]
    pipeline = case.build()
    loaded = save_and_load(case, tmp_path)
    assert models_of(loaded).keys() == models_of(pipeline).keys()
    for component, model in models_of(pipeline).items():
        weights = models_of(loaded)[component].state_dict()
        assert weights.keys() == model.state_dict().keys()
        assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items()), component
    image = case.run(pipeline, PROMPT, 0)
    np.testing.assert_allclose(case.run(loaded, PROMPT, 0), image, atol=1e-5)
    assert np.array_equal(case.run(realign(loaded), PROMPT, 0), image)
