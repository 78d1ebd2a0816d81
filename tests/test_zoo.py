"""The network zoo: right against ONNX Runtime, and within the memory that is promised."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import pytest

import vessels
from benchmarks import zoo
from tests.comparison import assert_close, assert_same_class, run_onnxruntime, run_vessels
from vessels import importer
from vessels.api import compile_model
from vessels.errors import BudgetError
from vessels.figures import Figures, figures
from vessels.lower import lower
from vessels.plan import make_plan
from vessels.simplify import simplify

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


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.heavy) for n in POOL_LIMITS]
)
def test_the_process_holds_little_more_than_its_pool(name: str, tmp_path: Path) -> None:
    """Code, libraries, stacks and the decoded program take less than 6 MiB."""
    model, sealed, key = _network(name), tmp_path / "m.vessel", bytes(32)
    vessels.build(model, sealed, key=key)
    try:
        with vessels.Enclave(sealed, key=key) as enclave:
            for _ in range(2):
                enclave.run(zoo.example_input(model))
            memory, pool_size = enclave.memory(), enclave.ready.pool_size
    finally:
        sealed.unlink()
    assert memory.trusted <= pool_size + 6 * MIB
    # No part of the pool may escape the account: all of it but what one run leaves alone.
    assert memory.trusted >= 0.9 * pool_size


@pytest.mark.parametrize(
    "name",
    ["mobilenet_v2", *(pytest.param(n, marks=pytest.mark.heavy) for n in ("alexnet", "resnet50"))],
)
def test_budgets(name: str) -> None:
    """From the smallest possible budget up: never above it, never slower with more."""
    lowered = lower(simplify(importer.load(_network(name), {})))
    with pytest.raises(BudgetError) as refusal:
        make_plan(lowered, memory=1000)
    least = int(str(refusal.value).split("smallest possible budget is ")[1].split()[0])
    with pytest.raises(BudgetError, match=str(least)):
        make_plan(lowered, memory=least - 1)
    streamed, resident = make_plan(lowered), make_plan(lowered, resident=True)
    between = np.linspace(least, resident.pool_size, 8).astype(int).tolist()
    before = float("inf")
    for memory in sorted({*between, streamed.pool_size - 1, streamed.pool_size, 2 * between[-1]}):
        plan = make_plan(lowered, memory=memory)
        assert plan.pool_size <= memory
        assert plan.estimated_ns <= before
        before = plan.estimated_ns
        if memory >= streamed.pool_size:
            assert plan.estimated_ns <= streamed.estimated_ns
    assert before <= resident.estimated_ns


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
