"""The network zoo: right against ONNX Runtime, and within the memory that is promised."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks import zoo
from tests.comparison import assert_close, assert_same_class, run_onnxruntime, run_vessels
from vessels.api import compile_model
from vessels.figures import Figures, figures

MIB = 1 << 20

QUICK = {"squeezenet", "mobilenet_v2", "resnet18"}
"""Networks that also run without the heavy tests."""

QUICK_PLANS = QUICK | {"alexnet", "densenet121", "googlenet"}

POOL_LIMITS = {
    "alexnet": 4,
    "mobilenet_v2": 8,
    "resnet50": 10,
    "resnet152": 10,
    "densenet201": 11,
    "vgg16": 28,
}
"""Largest pool in MiB: 2 threads, batch 1, 224x224, everything streamed."""


def _networks(quick: set[str]) -> list[object]:
    return [
        name if name in quick else pytest.param(name, marks=pytest.mark.heavy) for name in zoo.NAMES
    ]


@lru_cache(maxsize=1)
def _network(name: str) -> onnx.ModelProto:
    return zoo.build(name)


@lru_cache(maxsize=len(zoo.NAMES))
def _figures(name: str) -> Figures:
    return figures(compile_model(_network(name), threads=2).program)


@pytest.mark.parametrize("name", _networks(QUICK))
def test_same_answer_as_onnxruntime(name: str, tmp_path: Path) -> None:
    model = _network(name)
    inputs = zoo.example_input(model)
    theirs = run_onnxruntime(model, inputs)
    ours = run_vessels(model, inputs, tmp_path)
    assert_close(ours, theirs)
    for output in set(theirs) & {"logits", "probabilities"}:
        assert_same_class(ours[output], theirs[output])


@pytest.mark.parametrize("name", ["squeezenet", "mobilenet_v2"])
def test_batch_of_two(name: str, tmp_path: Path) -> None:
    model = zoo.build(name, input_size=96, batch=2)
    inputs = zoo.example_input(model)
    assert_close(run_vessels(model, inputs, tmp_path), run_onnxruntime(model, inputs))


@pytest.mark.parametrize("name", _networks(QUICK_PLANS))
def test_activations_near_their_lower_bound(name: str) -> None:
    sizes = _figures(name)
    assert sizes.activation_size <= 1.02 * sizes.activation_lower_bound
    assert sizes.staging_size <= 2 * MIB


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in QUICK_PLANS else pytest.mark.heavy) for n in POOL_LIMITS],
)
def test_pool_is_as_small_as_promised(name: str) -> None:
    assert _figures(name).pool_size <= POOL_LIMITS[name] * MIB


def test_same_seed_same_network() -> None:
    assert (
        zoo.build("squeezenet").SerializeToString() == zoo.build("squeezenet").SerializeToString()
    )
    assert zoo.build("squeezenet", seed=1) != zoo.build("squeezenet")


@pytest.mark.parametrize(
    ("name", "parameter_count"),
    [
        ("squeezenet", 1_235_496),
        ("mobilenet_v2", 3_504_872),
        ("resnet18", 11_689_512),
        ("densenet121", 7_978_856),
        ("googlenet", 6_624_904),
    ],
)
def test_parameters_as_published(name: str, parameter_count: int) -> None:
    """Counts of torchvision, which leave the stored statistics of batch norms out."""
    statistics = (".mean", ".variance", ".low", ".high")
    counts = [
        int(np.prod(i.dims))
        for i in zoo.build(name).graph.initializer
        if not i.name.endswith(statistics)
    ]
    assert sum(counts) == parameter_count
