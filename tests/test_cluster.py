"""Serving on a Ray cluster, as far as it goes without one: needs, configuration, routing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from typer.testing import CliRunner

pytest.importorskip("ray", reason="Ray is not installed: pip install 'vessels[ray]'")

from pydantic import ValidationError
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.request_router import PendingRequest

import vessels
from tests.conftest import Sealed
from vessels import Enclave
from vessels.cli import app as command_line
from vessels.cluster.config import ClusterConfig, ModelConfig
from vessels.cluster.ingress import _not_taken
from vessels.cluster.need import MIB, Need, largest_node, need_of, resources_argument, shortage
from vessels.cluster.router import EnvironmentRouter, share_to_move
from vessels.errors import UsageError
from vessels.ladder import Ladder
from vessels.schedule.model import Shape
from vessels.seal import read_header
from vessels.serve.errors import Code


def streamed(folder: Path) -> Path:
    """A model of 8 MiB of parameters and hardly anything else."""
    weights = np.zeros((1024, 2048), np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "streamed",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1024])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 2048])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "m.onnx")
    vessels.build(folder / "m.onnx", folder / "m.vessel", key=folder / "m.key")
    return folder / "m.vessel"


# What is asked of nodes.


@given(st.lists(st.integers(1, 1 << 34), max_size=20), st.integers(0, 1 << 38))
def test_what_ray_places_on_a_node_fits_it(sizes: list[int], epc_size: int) -> None:
    capacity = json.loads(resources_argument(epc_size))["epc_mib"]
    assert capacity * MIB <= epc_size
    placed = 0
    taken = 0
    for size in sizes:
        need = Need(Shape(0, 1, 1, size))
        if placed + need.epc_mib <= capacity:
            placed += need.epc_mib
            taken += size
    assert taken <= epc_size


def test_an_environment_needs_its_pool_and_its_process(sealed: Sealed) -> None:
    one, two = (need_of(sealed.vessel, threads=t) for t in (1, 2))
    assert one.thread_count == 1
    assert two == need_of(sealed.vessel)
    four = need_of(sealed.vessel, threads=1, slots=4)
    for needed in (one, four):
        shape = needed.shape
        with Enclave(
            sealed.vessel, key=sealed.key, threads=1, slots=shape.slots, rung=shape.rung
        ) as enclave:
            enclave.run_batch([{"image": np.load(sealed.image)}] * shape.slots)
            assert enclave.ready.pool_size < enclave.memory().trusted <= needed.size
        machine = needed.machine
        assert machine.core_count == 1 and machine.epc_size == needed.epc_mib * MIB


def test_an_environment_has_the_best_shape_within_its_memory(tmp_path: Path) -> None:
    path = streamed(tmp_path)
    ladder = Ladder.of(read_header(path))

    def shape(*, slots: int | None = None, memory: int | None = None) -> Shape:
        return need_of(path, threads=1, slots=slots, memory=memory).shape

    built = ladder.default
    one = ladder.environment_size(built, 1, 1)
    # What costs little memory and saves much decryption is had unasked.
    unasked = shape()
    assert unasked.slots > 1
    assert one < unasked.size <= 2 * one
    # Just what is asked for.
    for slots in (1, 3, 8):
        assert shape(slots=slots) == Shape(
            built, slots, 1, ladder.environment_size(built, slots, 1)
        )
    # The more memory, the more it has; in the end it has all.
    last = ladder.environment_size(0, 1, 1)
    sizes = [last + step * (8 * MIB) // 8 for step in range(40)]
    found = [shape(memory=size) for size in sizes]
    assert all(s.size <= size for s, size in zip(found, sizes, strict=True))
    assert found[0] == Shape(0, 1, 1, last)
    assert [s.size for s in found] == sorted(s.size for s in found)
    assert (found[-1].rung, found[-1].slots) in {(len(ladder.rungs) - 1, n) for n in (1, 2, 4, 8)}
    assert all(s.slots <= 2 for s in (shape(memory=size, slots=2) for size in sizes))
    with pytest.raises(UsageError, match=f"needs {last:,} bytes"):
        shape(memory=last - 1)


def test_a_shortage_is_told_with_its_figure() -> None:
    nodes = [
        {"Alive": True, "Resources": {"epc_mib": 93.0}},
        {"Alive": True, "Resources": {"CPU": 8.0}},
        {"Alive": False, "Resources": {"epc_mib": 512.0}},
    ]
    most = largest_node(nodes)
    assert most == 93
    assert shortage("m", Need(Shape(0, 1, 1, 93 * MIB)), most) is None
    told = shortage("m", Need(Shape(0, 1, 1, 93 * MIB + 1)), most)
    assert told is not None and "epc_mib=94" in told and "the largest has 93" in told
    assert "none has any" in str(shortage("m", Need(Shape(0, 1, 1, 1)), largest_node([])))


def test_the_command_line_tells_needs_and_resources(sealed: Sealed) -> None:
    runner = CliRunner()
    told = runner.invoke(command_line, ["cluster", "resources", "--epc", "93.9MiB"])
    assert (told.exit_code, json.loads(told.stdout)) == (0, {"epc_mib": 93})
    told = runner.invoke(command_line, ["cluster", "need", "--json", str(sealed.vessel)])
    [row] = json.loads(told.stdout)
    assert row["epc_mib"] == need_of(sealed.vessel).epc_mib
    limits = ["--threads", "1", "--slots", "3", "--memory", "64MiB"]
    told = runner.invoke(command_line, ["cluster", "need", "--json", *limits, str(sealed.vessel)])
    [row] = json.loads(told.stdout)
    shape = need_of(sealed.vessel, threads=1, slots=3, memory=64 * MIB).shape
    assert (row["slot_count"], row["rung"], row["size"]) == (shape.slots, shape.rung, shape.size)


# Configuration.


def test_configuration_from_a_command_line() -> None:
    config = ClusterConfig.model_validate(
        {"models": "a=/x/y.vessel,/z/b.vessel", "keys": "http://k"}
    )
    assert [(m.name, m.path) for m in config.models] == [
        ("a", Path("/x/y.vessel")), ("b", Path("/z/b.vessel")),
    ]  # fmt: skip
    for memory in ("93MiB", 93 * MIB):
        model = ModelConfig.model_validate({"name": "a", "path": "x", "memory": memory})
        assert model.memory == 93 * MIB


@pytest.mark.parametrize(
    "wrong",
    [
        {"models": "a=x", "keys": "http://k", "colour": "red"},
        {"models": "a=x"},
        {"models": "a=x", "keys": "http://k", "insecure_keys": "k"},
        {"models": "a=x,a=y", "keys": "http://k"},
        {"models": "a/b=x", "keys": "http://k"},
        {"models": [], "keys": "http://k"},
        {"models": [{"name": "a", "path": "x", "replicas": [3, 2]}], "keys": "http://k"},
        {"models": "a=x", "keys": "http://k", "backend": "gramine"},
        {"models": [{"name": "a", "path": "x", "slots": 65}], "keys": "http://k"},
        {"models": [{"name": "a", "path": "x", "memory": "much"}], "keys": "http://k"},
        {"models": [{"name": "a", "path": "x", "memory": 0}], "keys": "http://k"},
        {
            "models": [{"name": "a", "path": "x", "manifest": "f", "slots": 2}],
            "keys": "http://k",
            "backend": "gramine",
        },
    ],
)
def test_configurations_that_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ClusterConfig.model_validate(wrong)


# Routing.


@given(st.integers(0, 1000), st.lists(st.integers(0, 1000), max_size=8))
def test_only_what_evens_the_load_out_moves(load: int, others: list[int]) -> None:
    share = share_to_move(load, others)
    assert 0 <= share < 1
    if share:
        assert 2 * min(others) < load
        assert load * (1 - share) == pytest.approx((load + sum(others)) / (1 + len(others)))


def chosen(
    router: EnvironmentRouter, held: list[Any], method: str = "predict", **arguments: str
) -> list[Any]:
    async def choose() -> list[Any]:
        metadata: Any = SimpleNamespace(call_method=method)
        pending = PendingRequest([], dict(arguments), metadata)
        found = await router.choose_replicas(held, pending)
        # Else Serve would ask again without a pause.
        assert pending.routing_context.should_backoff
        [rank] = found
        return list(rank)

    return asyncio.run(choose())


def test_a_request_goes_to_the_holder_of_its_environment() -> None:
    deployment = DeploymentID("m", "vessels")
    router = EnvironmentRouter(deployment, DeploymentHandleSource.REPLICA)
    router.initialize_state()
    held: list[Any] = [
        SimpleNamespace(
            replica_id=ReplicaID(str(i), deployment), replica_metadata={"environment": f"{i:016x}"}
        )
        for i in range(4)
    ]
    for one in held:
        environment = one.replica_metadata["environment"]
        assert chosen(router, held, environment=environment) == [one]
    # Gone, or none: anybody.
    for arguments in ({"environment": "ff" * 8}, {}):
        assert sorted(map(id, chosen(router, held, **arguments))) == sorted(map(id, held))
    # A busy one passes some on, and to the least busy.
    for one, count in zip(held, (40, 9, 2, 9), strict=True):
        router.replica_queue_len_cache.update(one.replica_id, count)
    wanted = held[0].replica_metadata["environment"]
    seen = [chosen(router, held, environment=wanted)[0] for _ in range(200)]
    assert {one.replica_id for one in seen} == {held[0].replica_id, held[2].replica_id}
    # Who is sent elsewhere is not sent back, nor on from where it was sent.
    for _ in range(20):
        assert {id(one) for one in chosen(router, held, "evidence")} == {id(r) for r in held[1:]}
    proof: Any = SimpleNamespace(metadata=SimpleNamespace(call_method="evidence"))
    router.on_request_routed(proof, held[0].replica_id, None)
    assert all(chosen(router, held, environment=wanted) == [held[0]] for _ in range(50))


def test_what_serve_does_not_take_is_told_in_our_words() -> None:
    full = _not_taken("m", BackPressureError(9, 9))
    assert (full.status, full.code, full.headers["retry-after"]) == (429, Code.OVERLOADED, "1")
    gone = _not_taken("m", DeploymentUnavailableError(DeploymentID("m", "vessels")))
    assert (gone.status, gone.code) == (503, Code.NOT_READY)
